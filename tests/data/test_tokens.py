"""The ids of marked texts, and how many stand before each mark: those of asking for the text until each mark alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsafe.data.tokens import one_by_one, special_tokens, tokenised
from vlsafe.data.turns import Marked
from vlsafe.stand_in.words import WORDS, make_tokenizer

PIECES = [
    "the ", "then", " other", "and", "  ", " ", "\n", "\n\n", "\t", "é", "日本", "🙂", "123", "4567", "'s", "USER: ",
    "ASSISTANT:", "[INST] ", " [/INST]", "<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>", "<|eot_id|>",
    "<|im_", "</", "s>", "<", "assistant\n", "a", "", "<tool>", "<tool>s",
]  # fmt: skip


def own(model: Any, pre: Any = None, normalizer: Any = None, **tokens: dict[str, Any]) -> Any:
    """A tokenizer of the library, with `</s>` and `<tool>` as added tokens with these settings."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(model)
    if pre is not None:
        core.pre_tokenizer = pre
    if normalizer is not None:
        core.normalizer = normalizer
    names = {"end": "</s>", "tool": "<tool>", "image": "<image>"}
    for name, text in names.items():
        added = AddedToken(text, **({"normalized": False} | tokens.get(name, {})))
        (core.add_tokens if name == "tool" else core.add_special_tokens)([added])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def letters(space: str = " ") -> dict[str, int]:
    known = ["<unk>", *map(chr, range(33, 127)), space, "th", "the", "er", "an", "and", f"{space}the", "ot"]
    return {token: number for number, token in enumerate(dict.fromkeys(known))}


def bpe(space: str = "▁") -> Any:
    from tokenizers import models

    merges = [("t", "h"), ("th", "e"), ("e", "r"), ("a", "n"), ("an", "d"), (space, "the"), ("o", "t")]
    return models.BPE(vocab=letters(space), merges=merges, unk_token="<unk>", fuse_unk=True)


def kinds() -> dict[str, Callable[[], Any]]:
    from tokenizers import models, normalizers, pre_tokenizers

    metaspace = pre_tokenizers.Metaspace
    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [(token, -float(len(letters()) - i)) for token, i in letters("▁").items()]
    return {
        **{family: lambda family=family: make_tokenizer(family) for family in WORDS},  # type: ignore[misc]
        "a space before each piece": lambda: own(bpe(), normalizer=legacy),
        "a space before the text": lambda: own(bpe(), metaspace(prepend_scheme="first")),
        "a space before each part": lambda: own(bpe(), metaspace(prepend_scheme="always", split=False)),
        "unigram": lambda: own(models.Unigram(pieces, unk_id=0), metaspace()),
        "words": lambda: own(
            models.WordPiece(letters(), unk_token="<unk>"), pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
        ),
        "an end that takes the space before it": lambda: own(bpe(), metaspace(), end={"lstrip": True}),
        "an end that takes the space behind it": lambda: own(bpe(), metaspace(), end={"rstrip": True}),
        "an end that is a word": lambda: own(bpe(), metaspace(), end={"single_word": True}),
        "an end that is looked for once normalised": lambda: own(bpe(), metaspace(), legacy, end={"normalized": True}),
        "a tool that is a word": lambda: own(bpe(), metaspace(), tool={"single_word": True}),
        "a tool that takes the space around it": lambda: own(bpe(), metaspace(), tool={"lstrip": True, "rstrip": True}),
    }


@pytest.fixture(scope="module", params=[*kinds()])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return kinds()[request.param]()


@st.composite
def texts(draw: Any) -> list[Marked]:
    made = []
    for _ in range(draw(st.integers(1, 3))):
        text = "".join(draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=14)))
        marks = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
        made.append(Marked(text, [*marks, len(text)]))
    return made


@settings(max_examples=150, deadline=None)
@given(texts(), st.booleans())
def test_ids_are_those_of_asking_for_each_part(tokenizer: Any, some: list[Marked], add_special: bool) -> None:
    expected = one_by_one(tokenizer, some, add_special)
    assert tokenised(tokenizer, some, add_special, special_tokens(tokenizer)) == expected
    for text, (whole, until) in zip(some, expected, strict=True):
        for mark, part in zip(text.marks, until, strict=True):
            alone = tokenizer(text.text[:mark], add_special_tokens=add_special)["input_ids"]
            assert alone == (part if isinstance(part, list) else whole[:part])
            assert isinstance(part, list) == (whole[: len(alone)] != alone)


@pytest.mark.parametrize("family", [*WORDS])
def test_no_text_is_tokenised_twice(family: str) -> None:
    """Of a conversation of many turns, what each is asked with is asked for from the end of the answer before it."""
    tokenizer, asked = make_tokenizer(family), list[str]()
    end = tokenizer.eos_token
    pieces = [piece for k in range(8) for piece in (f"question {k} of many\n", f"a long answer to it, the {k}th of them{end}")]
    marks = [sum(map(len, pieces[: k + 1])) for k in range(len(pieces))]
    special = special_tokens(tokenizer)

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: Any, **more: Any) -> Any:
            asked.extend(texts)
            return tokenizer(texts, **more)

    some = [Marked("".join(pieces), marks)] * 20
    assert tokenised(Counting(), some, False, special) == one_by_one(tokenizer, some, False)
    assert sum(map(len, asked)) < 1.7 * 22 * len(some[0].text)


def test_one_that_adds_something_behind_is_asked_for_each_part() -> None:
    from tokenizers import processors

    tokenizer = own(bpe())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    [(whole, until)] = tokenised(tokenizer, [Marked("the other", [3, 9])], True, special_tokens(tokenizer))
    assert whole[-1] == tokenizer.eos_token_id
    assert until[0] == [*tokenizer("the", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
