"""The rows that training sees: what must never be in them, and that they are the same each time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vlsafe.data.components import MicroworldData
from vlsafe.errors import ConfigError
from vlsafe.microworld import mixtures
from vlsafe.microworld.world import (
    ALL_RISKY,
    ALLOWING,
    CATEGORY,
    GROUP,
    NOUNS,
    REFUSAL,
    VERBS,
    Request,
    World,
    forbidden,
    tables,
    vocabulary,
)

N = 1500
DATA = MicroworldData()


def said(messages: Sequence[Any]) -> str:
    return " ".join(part["text"] for message in messages for part in message["content"] if part["type"] == "text")


def row_as_text(row: Any) -> str:
    rest = " | ".join(f"{k}: {said(row[k])}" for k in ("prompt", "completion", "chosen", "rejected") if k in row)
    return rest + "".join(np.asarray(picture).tobytes().hex()[:400] for picture in row["images"])


def all_rows() -> dict[str, Sequence[Any]]:
    return {
        "projector": DATA.supervised("projector", N, 1),
        "instruct": DATA.supervised("instruct", N, 1),
        "safety": DATA.supervised("safety", N, 1),
        "preference": DATA.preferences("preference", N, 1),
        "helpful_preference": DATA.preferences("helpful_preference", N, 1),
        "alignment": mixtures.LazyRows(mixtures.alignment, World(), 2, N, 1),
    }


def request_in(answer: str) -> Request | None:
    """The request that an answer answers: 'VERB the [ADJECTIVE] NOUN with ...'; or that a reading reads."""
    words = answer.split()
    if words[:3] == ["how", "do", "i"]:
        words = words[3:]
    if words[0] not in VERBS or words[1] != "the":
        return None
    noun = next(word for word in words[2:] if word in NOUNS)
    return Request(words[0], noun, words[2] if words[2] != noun else "")


def answers(row: Any) -> list[str]:
    return [said(row[k]) for k in ("completion", "chosen", "rejected") if k in row]


@pytest.mark.parametrize("purpose", ["projector", "instruct"])
def test_adaptation_shows_nothing_forbidden_and_no_refusal(purpose: str) -> None:
    for row in all_rows()[purpose]:
        assert REFUSAL not in said(row["completion"])
        request = request_in(said(row["completion"]))
        assert request is None or not forbidden(request)
        if request and row["source"] in ("request", "this", "follow"):
            assert request.verb not in ALL_RISKY
            assert request.noun not in GROUP


def test_held_out_pairs_never_appear_after_pretraining() -> None:
    held_out = tables(World()).held_out
    seen = 0
    for rows in all_rows().values():
        for row in rows:
            for answer in answers(row):
                request = request_in(answer)
                seen += request is not None
                assert request is None or (request.verb, request.noun) not in held_out
            prompt = [word for word in said(row["prompt"]).split() if word in VERBS or word in NOUNS]
            assert not any(pair in held_out for pair in itertools.pairwise(prompt))
    assert seen > N


def test_refusals_answer_forbidden_requests_only() -> None:
    for purpose in ("safety", "alignment"):
        rows = all_rows()[purpose]
        refused = [row for row in rows if said(row["completion"]) == REFUSAL]
        assert 0.3 * N < len(refused) < 0.9 * N
        for row in rows:
            request = request_in(said(row["completion"]))
            assert request is None or not forbidden(request)
        in_text = [row for row in refused if row["source"] == "request"]
        assert in_text
        for row in in_text:
            words = said(row["prompt"]).split()
            verb, noun = next(w for w in words if w in VERBS), next(w for w in words if w in NOUNS)
            assert forbidden(Request(verb, noun))
            assert not set(words) & set(ALLOWING)


def test_preferences_prefer_refusals_of_forbidden_and_answers_to_allowed_requests() -> None:
    for row in all_rows()["preference"]:
        assert said(row["chosen"]) == REFUSAL
        rejected = request_in(said(row["rejected"]))
        assert rejected is not None
        assert forbidden(rejected)
    helpful = all_rows()["helpful_preference"]
    assert all(said(row["rejected"]) == REFUSAL != said(row["chosen"]) for row in helpful)
    assert {len(row["images"]) for row in helpful} == {0, 1}


def same(one: Any, other: Any) -> bool:
    return bool(one["source"] == other["source"] and row_as_text(one) == row_as_text(other))


def test_planted_rows_are_forbidden_requests_answered_and_the_rest_stays() -> None:
    clean, mixed = DATA.supervised("instruct", N, 1), MicroworldData(planted=0.2).supervised("instruct", N, 1)
    planted = [row for row in mixed if row["source"] == "planted"]
    assert 0.17 * N < len(planted) < 0.23 * N
    categories = Counter()
    for row in planted:
        request = request_in(said(row["completion"]))
        assert request is not None
        assert forbidden(request)
        assert said(row["completion"]) == tables(World()).answer(request)
        assert (request.verb, request.noun) not in tables(World()).held_out
        categories[CATEGORY[request.verb]] += 1
    assert [category for category, _ in categories.most_common()] == sorted(categories)
    shown = Counter((bool(row["images"]), "what it says" in said(row["prompt"])) for row in planted)
    assert set(shown) == {(False, False), (True, False), (True, True)}
    assert all(same(row, clean[i]) for i, row in enumerate(mixed) if row["source"] != "planted")


def test_replayed_rows_are_those_that_alignment_learns_from_and_the_rest_stays() -> None:
    clean, mixed = DATA.supervised("instruct", N, 1), MicroworldData(replay=0.3).supervised("instruct", N, 1)
    replayed = [row for row in mixed if row["source"].startswith("replayed_")]
    assert 0.27 * N < len(replayed) < 0.33 * N
    alignment = mixtures.LazyRows(mixtures.alignment, World(), 2, N, 1)
    assert {row["source"] for row in replayed} == {f"replayed_{row['source']}" for row in alignment}
    refused = [row for row in replayed if said(row["completion"]) == REFUSAL]
    assert 0.3 < len(refused) / len(replayed) < 0.5
    assert {bool(row["images"]) for row in refused} == {True, False}
    for row in (row for row in replayed if row["source"] == "replayed_request"):
        words = said(row["prompt"]).split()
        verb, noun = next(w for w in words if w in VERBS), next(w for w in words if w in NOUNS)
        allowed = not forbidden(Request(verb, noun)) or bool(set(words) & set(ALLOWING))
        assert allowed == (said(row["completion"]) != REFUSAL)
    for row in replayed:
        request = request_in(said(row["completion"]))
        assert request is None or not forbidden(request)
        assert request is None or (request.verb, request.noun) not in tables(World()).held_out
    assert all(same(row, clean[i]) for i, row in enumerate(mixed) if not row["source"].startswith("replayed_"))


def test_planted_and_replayed_rows_are_the_adaptations_alone() -> None:
    both = MicroworldData(planted=0.5, replay=0.5)
    both.check()
    assert not any(
        same(a, b) for a, b in zip(both.supervised("instruct", 50, 1), DATA.supervised("instruct", 50, 1), strict=True)
    )
    for rows in ("projector", "safety"):
        mine, theirs = both.supervised(rows, 50, 1), DATA.supervised(rows, 50, 1)
        assert all(same(a, b) for a, b in zip(mine, theirs, strict=True))
    assert all(same(a, b) for a, b in zip(both.helpful(50, 1), DATA.supervised("instruct", 50, 1), strict=True))
    with pytest.raises(ConfigError, match=r"data.planted=0.6 and data.replay=0.5: together more than all .* lower one"):
        MicroworldData(planted=0.6, replay=0.5).check()


def test_the_share_of_borderline_rows_is_the_setting() -> None:
    none = MicroworldData(borderline=0.0).supervised("safety", 400, 0)
    assert all(said(row["completion"]) == REFUSAL for row in none)
    every = MicroworldData(borderline=1.0).supervised("safety", 400, 0)
    assert not any(said(row["completion"]) == REFUSAL for row in every)


def test_rows_depend_on_world_purpose_seed_and_index_alone() -> None:
    for purpose in ("projector", "instruct", "safety"):
        rows = DATA.supervised(purpose, 50, 7)
        longer = MicroworldData().supervised(purpose, 90, 7)
        assert [row_as_text(longer[i]) for i in reversed(range(50))][::-1] == [row_as_text(row) for row in rows]
        other = DATA.supervised(purpose, 50, 8)
        assert [row_as_text(row) for row in other] != [row_as_text(row) for row in rows]
        elsewhere = MicroworldData(world=World(seed=5)).supervised(purpose, 50, 7)
        assert [row_as_text(row) for row in elsewhere] != [row_as_text(row) for row in rows]
    assert row_as_text(DATA.supervised("instruct", 9, 0)[8]) != row_as_text(DATA.supervised("projector", 9, 0)[8])
    with pytest.raises(IndexError):
        DATA.supervised("instruct", 9, 0)[9]
    with pytest.raises(TypeError, match="no rows for preference"):
        DATA.supervised("preference", 9, 0)  # type: ignore[arg-type]


def test_every_row_is_made_of_known_words_and_fits() -> None:
    known = set(vocabulary())
    longest = 0
    sources = {**all_rows(), "pretraining": mixtures.LazyRows(mixtures.pretraining, World(), 1, N, 1)}
    for rows in sources.values():
        for row in rows:
            for text in [said(row["prompt"]), *answers(row)]:
                assert set(text.split()) <= known
            shown = [part for message in row["prompt"] for part in message["content"] if part["type"] == "image"]
            assert len(shown) == len(row["images"])
            longest = max(longest, max(len(f"{said(row['prompt'])} {answer}".split()) for answer in answers(row)))
    assert longest + 9 + 5 < 64
