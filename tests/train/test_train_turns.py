"""Conversations of several turns: every answer is learned, nothing that was asked is, pictures neither."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import train_tiny as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.errors import CheckError
from vlsafe.model.load import load_processor
from vlsafe.train.checks import check_supervised

ENDLESS = tiny.TEMPLATE.replace("{{ eos_token }}", "")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_processor(tiny.llava(tmp_path_factory.mktemp("llava")))


def talk(n: int, turns: int, seed: int, picture: bool = False) -> list[Any]:
    """`n` conversations in which each answer is `w30`, `w31`, … and no question has one of these words."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        messages = []
        for k in range(turns):
            messages.append(
                tiny.message("user", " ".join(draw.choices(tiny.WORDS[:30], k=draw.randint(1, 4))), picture and k == 0)
            )
            messages.append(tiny.message("assistant", f"w{30 + k} w{30 + k}"))
        images = [tiny.picture(seed * 1000 + i)] if picture else []
        rows.append({"source": "talk", "prompt": messages[:1], "completion": messages[1:], "images": images})
    return rows


def learned(batch: Any, tokens: Any, row: int = 0) -> list[str]:
    return list(tokens.convert_ids_to_tokens(batch["input_ids"][row][batch["labels"][row] != -100].tolist()))


@pytest.mark.parametrize("picture", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_every_answer_is_learned_with_its_end_and_nothing_else(processor: Any, turns: int, picture: bool) -> None:
    rows = talk(5, turns, seed=turns, picture=picture)
    encoder = Encoder(processor)
    encoded = encoder.encode(rows)
    batch = Collator(encoder, encoded.examples, rows)([{"example": i} for i in range(5)])
    for i, row in enumerate(rows):
        expected = [word for k in range(turns) for word in (f"w{30 + k}", f"w{30 + k}", "</s>")]
        assert learned(batch, processor.tokenizer, i) == expected
        messages = [*row["prompt"], *row["completion"]]
        if picture:
            shown = {"type": "image", "image": row["images"][0]}
            messages = [{**messages[0], "content": [shown, messages[0]["content"][1]]}, *messages[1:]]
        whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"][0]
        assert batch["input_ids"][i, : len(whole)].equal(whole)
    assert encoded.supervised == {"talk": 5 * 3 * turns}
    assert sum(encoded.tokens.values()) == int(batch["attention_mask"].sum())


def test_a_turn_is_learned_after_the_prompt_that_evaluation_would_show(processor: Any) -> None:
    """Each answer as a row of its own, with the turns before it as the prompt: the same tokens are learned."""
    (row,) = talk(1, 3, seed=9)
    whole = [*row["prompt"], *row["completion"]]
    encoder = Encoder(processor)
    (example,) = encoder.encode([row]).examples
    batch = Collator(encoder, [example], [row])([{"example": 0}])
    places: list[int] = []
    for k in (1, 3, 5):
        single = {**row, "prompt": whole[:k], "completion": [whole[k]]}
        (one,) = encoder.encode([single]).examples
        start = len(one.prompt)
        assert [*one.prompt] == batch["input_ids"][0, :start].tolist()
        assert [*one.completions[0]] == batch["input_ids"][0, start : start + len(one.completions[0])].tolist()
        places += range(start, start + len(one.completions[0]))
    assert (batch["labels"][0] != -100).nonzero().flatten().tolist() == places


def test_an_end_is_added_to_every_answer_where_the_template_has_none() -> None:
    plain = tiny.tokenizer()
    plain.chat_template = ENDLESS
    rows = talk(2, 3, seed=3)
    encoder = Encoder(plain)
    encoded = encoder.encode(rows)
    assert encoded.end_token == "appended"
    batch = Collator(encoder, encoded.examples, rows)([{"example": 0}])
    assert learned(batch, plain) == ["w30", "w30", "</s>", "w31", "w31", "</s>", "w32", "w32", "</s>"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_what_is_learned_and_what_is_asked_make_up_the_whole(turns: int, seed: int) -> None:
    plain = tiny.tokenizer()
    (row,) = talk(1, turns, seed)
    (example,) = Encoder(plain).encode([row]).examples
    taken = [k for start, end in (example.asked[0] if example.asked else ()) for k in range(start, end)]
    asked = plain.convert_ids_to_tokens([example.completions[0][k] for k in taken])
    learned = plain.convert_ids_to_tokens([t for k, t in enumerate(example.completions[0]) if k not in set(taken)])
    assert learned == [word for k in range(turns) for word in (f"w{30 + k}", f"w{30 + k}", "</s>")]
    assert asked.count("user") == turns - 1
    assert not {"</s>", *(f"w{k}" for k in range(30, 40))} & set(asked)


def test_a_picture_of_a_later_question_is_shown_there_and_not_learned(processor: Any) -> None:
    (row,) = talk(1, 2, seed=5)
    row["completion"][1] = tiny.message("user", "w3", image=True)
    row["images"] = [tiny.picture(1)]
    encoder = Encoder(processor)
    (example,) = encoder.encode([row]).examples
    batch = Collator(encoder, [example], [row])([{"example": 0}])
    assert 4 not in example.prompt
    assert batch["input_ids"][0].tolist().count(4) == 16
    assert learned(batch, processor.tokenizer) == ["w30", "w30", "</s>", "w31", "w31", "</s>"]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    plain = tiny.tokenizer()
    plain.chat_template = tiny.TEMPLATE.replace(
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}",
        "{% if m['role'] == 'assistant' and loop.last %}{{ eos_token }}{% endif %}",
    )
    Encoder(plain).encode(talk(2, 1, seed=1))
    with pytest.raises(
        CheckError, match="row 0 of source 'talk': the chat template renders turn 1 otherwise when a further turn follows"
    ):
        Encoder(plain).encode(talk(2, 2, seed=1))


def test_a_prompt_that_a_later_turn_is_not_asked_with_is_refused() -> None:
    """The generation prompt doesn't begin the answer's turn: what follows it is another prompt than evaluation's."""
    plain = tiny.tokenizer()
    plain.chat_template = tiny.TEMPLATE.replace(
        "{% if add_generation_prompt %}assistant :{% endif %}",
        "{% if add_generation_prompt %}{% if messages | length > 1 %}w9{% else %}assistant :{% endif %}{% endif %}",
    )
    Encoder(plain).encode(talk(2, 1, seed=1))
    with pytest.raises(CheckError, match="renders the prompt otherwise when an answer follows"):
        Encoder(plain).encode(talk(2, 2, seed=1))


def test_a_row_without_an_answer_is_refused() -> None:
    (row,) = talk(1, 1, seed=1)
    with pytest.raises(CheckError, match="row 0 of source 'talk', 'a7': has no answer of the assistant"):
        Encoder(tiny.tokenizer()).encode([{**row, "completion": [], "id": "a7"}])


def spoiled(*rows: int, how: str) -> list[Any]:
    """150 conversations, of which some have an empty answer in the middle, or two questions in a row."""
    made = talk(150, 2, seed=1)
    for i in rows:
        turns = made[i]["completion"]
        made[i] = {**made[i], "id": f"a{i}", "completion": [*turns[:2], tiny.message("assistant", " ")] if how == "empty" else
                   [turns[1], *turns]}  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("how", "why"), [("empty", "a2: an answer is empty"), ("turns", "a2: the chat template refuses its turns")]
)
def test_a_row_with_an_empty_answer_or_turns_that_the_template_refuses_is_left_out_and_named(how: str, why: str) -> None:
    plain = tiny.tokenizer()
    plain.chat_template = (
        "{% if messages | length > 1 and messages[1]['role'] == 'user' %}{{ raise_exception('roles alternate') }}{% endif %}"
        + tiny.TEMPLATE
    )
    encoded = Encoder(plain).encode(spoiled(2, how=how))
    assert encoded.broken == {"talk": 1} and encoded.named["talk"][0].startswith(why)
    assert [example.row for example in encoded.examples] == [i for i in range(150) if i != 2]
    whole = Encoder(plain).encode(talk(150, 2, seed=1)).examples
    assert all(encoded.examples[i].completions == whole[i + (i >= 2)].completions for i in range(149))
    with pytest.raises(CheckError, match=f"2 of 150 rows can't be shown to the model.*{why}"):
        Encoder(plain).encode(spoiled(2, 5, how=how))


def test_a_source_of_which_nothing_is_learned_stops_the_run(processor: Any) -> None:
    rows = [*talk(2, 1, seed=1), *({**row, "source": "long"} for row in talk(2, 4, seed=2))]
    encoded = Encoder(processor, limit=16).encode(rows)
    with pytest.raises(CheckError, match=r"source 'long' has no supervised token .2 rows were too long and dropped"):
        check_supervised(encoded, "instruct")


def test_a_template_that_renders_one_kind_of_prompt_otherwise_once_it_is_answered_is_refused(processor: Any) -> None:
    """Else the answer's first words would be cut off: the model would learn the rest of it."""
    changed = copy.copy(processor)
    whole = "{% set alone = messages[-1]['role'] != 'assistant' and messages[0]['content'][0]['text'] == 'w7' %}"
    changed.chat_template = whole + "{% if alone %}w1 w2 w3 {% endif %}" + processor.chat_template
    rows = talk(3, 1, seed=3)
    Encoder(changed).encode(rows)  # the others are as they are
    rows[1]["prompt"] = [tiny.message("user", "w7", False)]
    with pytest.raises(
        CheckError, match="row 1 of source 'talk': the chat template renders the prompt otherwise when an answer follows"
    ):
        Encoder(changed).encode(rows)


def joining() -> Any:
    """A tokenizer for which an answer's first letter is one token with the prompt's last, where they are t and h."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", *map(chr, range(32, 127)), "th"]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, [("t", "h")], unk_token="<unk>"))
    core.add_special_tokens(["</s>"])
    plain = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    plain.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ ' t' if m['role'] == 'user' else eos_token }}{% endfor %}"
    )
    return plain


def said(number: int, answer: str) -> dict[str, Any]:
    asked, told = (tiny.message(role, text, False) for role, text in (("user", "what"), ("assistant", answer)))
    return {"id": f"row-{number}", "source": "talk", "prompt": [asked], "completion": [told], "images": []}


def test_a_row_whose_answer_is_joined_with_its_prompt_is_left_out_and_named() -> None:
    rows = [said(i, "he" if i == 150 else "so") for i in range(200)]
    encoded = Encoder(joining()).encode(rows)
    assert [example.row for example in encoded.examples] == [i for i in range(200) if i != 150]
    assert encoded.broken == {"talk": 1}
    (named,) = encoded.named["talk"]
    assert named.startswith("row-150: the tokenizer joins the prompt's end with the answer's beginning")
    with pytest.raises(CheckError, match=r"2 of 4 rows can't be shown to the model, .*talk: row-0: the tokenizer joins"):
        Encoder(joining()).encode([said(i, "he" if i % 2 == 0 else "so") for i in range(4)])
