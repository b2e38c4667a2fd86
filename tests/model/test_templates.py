"""Chat templates: a language model's own words, with pictures in them, and refused where nothing could be learned from them."""

from __future__ import annotations

import pytest

from tests.model.conftest import messages
from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.templates import FAMILIES, check_name, check_template, chosen_template, with_pictures
from vlsafe.stand_in.words import WORDS, make_tokenizer

EXPECTED = {
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhat? [/INST] A cube. </s><s>[INST] Sure? [/INST]",
    "mistral": "<s> [INST] Be brief.\n\n<image>\nWhat? [/INST] A cube.</s> [INST] Sure? [/INST]",
    "tulu": "<|system|>\nBe brief.\n<|user|>\n<image>\nWhat?\n<|assistant|>\nA cube.</s>\n<|user|>\nSure?\n<|assistant|>\n",
    "vicuna": "<s>Be brief. USER: <image>\nWhat? ASSISTANT: A cube.</s>USER: Sure? ASSISTANT:",
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cube.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen2": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nA cube.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    ),
}


@pytest.mark.parametrize("family", sorted(EXPECTED))
def test_a_family_speaks_as_it_does_with_pictures_in_their_place(family: str) -> None:
    tokenizer = make_tokenizer(family)
    own, shown = FAMILIES[family], with_pictures(FAMILIES[family])
    talk = messages("What?", "A cube.", "Sure?", picture=True, system="Be brief.")
    render = tokenizer.apply_chat_template
    assert render(talk, chat_template=shown, tokenize=False, add_generation_prompt=True) == EXPECTED[family]
    plain = [{**m, "content": "".join(p.get("text", "<image>\n") for p in m["content"])} for m in talk]
    for ask in (True, False):
        assert render(plain, chat_template=own, tokenize=False, add_generation_prompt=ask) == render(
            talk, chat_template=shown, tokenize=False, add_generation_prompt=ask
        )
        assert render(plain, chat_template=shown, tokenize=False, add_generation_prompt=ask) == render(
            plain, chat_template=own, tokenize=False, add_generation_prompt=ask
        )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_answer_begins_where_the_prompt_ends(family: str) -> None:
    tokenizer = make_tokenizer(family if family in WORDS else "llama2")
    tokenizer.chat_template = with_pictures(FAMILIES[family])
    check_template(tokenizer, "here")
    asked = tokenizer.apply_chat_template(messages("What?"), tokenize=False, add_generation_prompt=True)
    told = tokenizer.apply_chat_template(messages("What?", "A cube."), tokenize=False)
    assert told.startswith(asked)
    assert "A cube." in told[len(asked) :]
    assert tokenizer.eos_token in told[len(asked) :]


def test_pictures_between_words_stay_where_they_are() -> None:
    tokenizer = make_tokenizer("tulu")
    parts = [{"type": "text", "text": "First "}, {"type": "image"}, {"type": "text", "text": "then "}, {"type": "image"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=with_pictures(FAMILIES["tulu"]), tokenize=False
    )
    assert text == "<|user|>\nFirst <image>\nthen <image>\n\n"


def test_a_template_that_takes_pictures_is_left_alone() -> None:
    once = with_pictures(FAMILIES["tulu"])
    assert with_pictures(once) == once


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves out the question"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "leaves out the answer"),
        ("{{ raise_exception('only system here') }}", "TemplateError: only system here"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if messages|length == 1 %}?{% endif %}", "otherwise"),
        ("{% for m in messages %}{{ m['content'].replace('<image>', '') }}{% endfor %}", "0 times '<image>' for one picture"),
        ("{% for m in messages %}{{ m.content", "can't render"),
    ],
)
def test_a_template_that_masks_everything_is_refused(template: str, message: str) -> None:
    tokenizer = make_tokenizer("llama2")
    tokenizer.chat_template = with_pictures(template)
    with pytest.raises(CheckError, match=message) as caught:
        check_template(tokenizer, "model.chat_template")
    assert str(caught.value).startswith("model.chat_template: ")


def test_a_tokenizer_without_a_template_names_the_setting() -> None:
    vicuna = make_tokenizer("vicuna")
    with pytest.raises(CheckError, match=r"vicuna: its tokenizer has no chat template; set model\.chat_template to .*vicuna"):
        chosen_template(None, vicuna, "model.chat_template", "vicuna")
    assert chosen_template("vicuna", vicuna, "model.chat_template", "vicuna") == FAMILIES["vicuna"]
    assert chosen_template("{{ 1 }}", vicuna, "model.chat_template", "vicuna") == "{{ 1 }}"
    with pytest.raises(ConfigError, match="did you mean 'vicuna'"):
        check_name("vicunia", "model.chat_template")
