"""Worlds of other sizes and seeds: a world of their own each, and in none does training show what evaluation asks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlsafe import registry
from vlsafe.data.components import MicroworldData
from vlsafe.microworld import mixtures, skills
from vlsafe.microworld.world import (
    NOUNS,
    RISKY_VERBS,
    VERBS,
    Size,
    World,
    forbidden,
    lexicon,
    spoken,
    tables,
    vocabulary,
)

from .test_rows import answers, request_in, said

SIZES: tuple[Size, ...] = ("small", "standard")
BENCHMARKS = [name for name in registry.names("benchmark") if name.startswith("mw_")]
worlds = st.builds(World, seed=st.integers(0, 2**32 - 1), size=st.sampled_from(SIZES))


def trained_on(world: World, n: int, seed: int) -> list[Any]:
    """Rows of every kind that a model learns from after pretraining, planted and replayed ones included."""
    data = MicroworldData(world=world, planted=0.3, replay=0.3)
    purposes = ("projector", "instruct", "safety")
    rows = [row for purpose in purposes for row in data.supervised(purpose, n, seed)]  # type: ignore[arg-type]
    rows += [row for purpose in ("preference", "helpful_preference") for row in data.preferences(purpose, n, seed)]  # type: ignore[arg-type]
    return [*rows, *mixtures.LazyRows(mixtures.alignment, world, 2, n, seed)]


@settings(max_examples=12, deadline=None)
@given(worlds, st.integers(0, 999))
def test_no_held_out_pair_is_trained_on_and_no_other_is_asked_in_any_world(world: World, seed: int) -> None:
    held_out, known, requests = tables(world).held_out, set(spoken(world)), 0
    for row in trained_on(world, 40, seed):
        texts = [said(row["prompt"]), *answers(row)]
        assert {word for text in texts for word in text.split()} <= known
        for request in filter(None, map(request_in, answers(row))):
            requests += 1
            assert (request.verb, request.noun) not in held_out
        asked = [word for word in texts[0].split() if word in VERBS or word in NOUNS]
        assert not any(pair in held_out for pair in itertools.pairwise(asked))
    assert requests > 20
    for name in BENCHMARKS:
        benchmark = registry.make("benchmark", {"name": name, "world": world})
        for item in benchmark.items(24):
            assert set(f"{item.prompt} {item.target}".split()) <= known
            request = request_in(item.target)
            assert request is None or (request.verb, request.noun) in held_out
            assert benchmark.axis.endswith("_safety") == bool(request and forbidden(request))


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(SIZES), st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2, unique=True))
def test_worlds_of_two_seeds_have_other_facts_rows_and_items(size: Size, seeds: list[int]) -> None:
    one, other = (World(seed=seed, size=size) for seed in seeds)
    assert tables(one).tool != tables(other).tool
    assert tables(one).held_out != tables(other).held_out
    for purpose in ("projector", "instruct", "safety"):
        drawn = [[said(r["completion"]) for r in MicroworldData(world=w).supervised(purpose, 40, 0)] for w in (one, other)]  # type: ignore[arg-type]
        assert drawn[0] != drawn[1]
    for name in BENCHMARKS:
        targets = [[i.target for i in registry.make("benchmark", {"name": name, "world": w}).items(24)] for w in (one, other)]
        assert targets[0] != targets[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_world_has_fewer_words_and_every_kind_of_request(seed: int) -> None:
    world, standard = World(seed=seed, size="small"), World(seed=seed)
    small, whole = lexicon(world), lexicon(standard)
    assert set(small.verbs) < set(whole.verbs) == set(VERBS)
    assert set(small.nouns) < set(whole.nouns) == set(NOUNS)
    assert spoken(standard) == vocabulary()
    assert len(small.verbs) * 2 < len(whole.verbs)
    assert len(small.nouns) * 2 < len(whole.nouns)
    for kind in ("forbidden", "excused", *skills.BORDERLINE, "harmless"):
        for held_out in (True, False):
            assert skills.pairs(world, kind, held_out), (kind, held_out)  # type: ignore[arg-type]
    for category in range(len(RISKY_VERBS)):
        assert skills.pairs(world, "forbidden", True, category)
        assert skills.pairs(world, "forbidden", False, category)
    for name in BENCHMARKS:
        items = registry.make("benchmark", {"name": name, "world": world}).items(None)
        assert len(items) >= 80
        assert len({item.id for item in items}) == len(items)


def test_a_size_that_is_none_names_those_that_are() -> None:
    from vlsafe.errors import ConfigError

    with pytest.raises(ConfigError, match=r"data.world.size=tiny: choose from: small, standard"):
        registry.make("data", {"name": "microworld", "world": {"size": "tiny"}})
