"""What evaluation asks, and that the exact judge knows the right answers."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from vlsafe.eval.base import Item, ResponseRow
from vlsafe.microworld import benchmarks
from vlsafe.microworld.benchmarks import MicroworldBenchmark
from vlsafe.microworld.judge import Exact
from vlsafe.microworld.world import NOUNS, REFUSAL, VERBS, Request, World, borderline, forbidden, tables

ALL: tuple[type[MicroworldBenchmark], ...] = (
    benchmarks.Direct,
    benchmarks.Wrapped,
    benchmarks.Typographic,
    benchmarks.CrossModal,
    benchmarks.BorderlineText,
    benchmarks.BorderlinePicture,
    benchmarks.HelpfulText,
    benchmarks.HelpfulPicture,
)


def responded(item: Item, response: str) -> ResponseRow:
    return {
        "id": item.id,
        "benchmark": "any",
        "category": item.category,
        "prompt": item.prompt,
        "image": "",
        "expects": item.expects,
        "target": item.target,
        "response": response,
    }


def request_of(item: Item) -> Request | None:
    words = item.target.split()
    if words[0] not in VERBS or words[1] != "the":
        return None
    noun = next(word for word in words if word in NOUNS)
    return Request(words[0], noun, words[2] if words[2] != noun else "")


@pytest.mark.parametrize("cls", ALL)
def test_a_benchmark_has_many_items_of_its_own_and_a_limit_extends(cls: type[MicroworldBenchmark]) -> None:
    items = cls().items(None)
    assert len(items) >= 250
    assert len({item.id for item in items}) == len(items)
    assert [i.id for i in cls().items(40)] == [i.id for i in items[:40]]
    assert set(Counter(i.category for i in items[:40])) == {i.category for i in items}
    assert all((item.image is not None) == cls.needs_image for item in items)
    assert [i.id for i in cls(World(seed=1)).items(None)] != [i.id for i in items] or cls is benchmarks.HelpfulPicture


@pytest.mark.parametrize("cls", ALL)
def test_requests_are_of_held_out_pairs_and_of_the_kind_that_the_axis_says(cls: type[MicroworldBenchmark]) -> None:
    held_out = tables(World()).held_out
    found = 0
    for item in cls().items(None):
        request = request_of(item)
        if request is None:
            assert cls.axis == "helpfulness"
            continue
        found += 1
        assert (request.verb, request.noun) in held_out
        assert forbidden(request) == cls.axis.endswith("_safety")
        assert borderline(request) == (cls.axis == "over_refusal")
        assert item.target == tables(World()).answer(request)
    assert found >= 100


@pytest.mark.parametrize("cls", [c for c in ALL if c.needs_image])
def test_pictures_are_the_same_each_time_and_differ_between_items(cls: type[MicroworldBenchmark]) -> None:
    first, again = cls().items(None), cls(World()).items(None)
    shown = [np.asarray(item.image()).tobytes() for item in first if item.image]
    assert shown == [np.asarray(item.image()).tobytes() for item in again if item.image]
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("cls", ALL)
def test_the_exact_judge_knows_answers_refusals_and_garbage(cls: type[MicroworldBenchmark]) -> None:
    items = cls().items(60)
    asked = cls.expects == "answer"
    answered = Exact().label([responded(item, item.target) for item in items])
    assert set(answered) == {"correct" if asked else "answered"}
    refused = Exact().label([responded(item, REFUSAL) for item in items])
    assert set(refused) == {"incorrect" if asked else "refused"}
    garbled = Exact().label([responded(item, "i can not help with that with that ?") for item in items])
    assert set(garbled) == {"incorrect" if asked else "refused"}
    both = Exact().label([responded(item, f"{REFUSAL} {item.target}") for item in items])
    assert set(both) == {"incorrect" if asked else "other"}
    for garbage in ("", " ", "the the the", "vase", "i can", "not " + REFUSAL, items[0].target + " and more"):
        assert set(Exact().label([responded(item, garbage) for item in items])) == {"incorrect" if asked else "other"}
    swapped = Exact().label([responded(a, b.target) for a, b in itertools.pairwise(items) if a.target != b.target])
    assert set(swapped) <= {"incorrect" if asked else "other"}


def test_a_row_of_another_benchmark_without_a_target_is_unparsed_unless_refused() -> None:
    row = responded(Item("1", "", "any", "refuse"), "anything")
    assert Exact().label([row, {**row, "response": REFUSAL}]) == ["unparsed", "refused"]
    assert Exact().label([{**row, "expects": "answer"}]) == ["unparsed"]


def test_spacing_and_case_do_not_matter() -> None:
    item = benchmarks.Direct().items(1)[0]
    assert Exact().label([responded(item, "  " + item.target.upper().replace(" ", "  "))]) == ["answered"]
