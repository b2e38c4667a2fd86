"""Order and mixing: exact counts, nothing lost, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsafe.data.mix import Mixed, counts
from vlsafe.data.order import balanced, batches


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_every_row_is_seen_before_any_is_seen_again(pictured: list[bool], size: int, steps: int, seed: int) -> None:
    order = batches(pictured, size, steps, seed)
    assert [len(b) for b in order] == [size] * steps
    seen = Counter(i for b in order for i in b)
    passes = steps * size / len(pictured)
    # What a pass leaves over goes first in the next one, so no row is more than a pass ahead of another.
    assert max(seen.values()) <= passes + 2
    if passes <= 1:
        assert max(seen.values()) == 1
    assert order == batches(pictured, size, steps, seed)


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(1, 8), st.integers(0, 3))
def test_at_most_one_batch_of_a_pass_mixes_modalities(pictured: list[bool], size: int, seed: int) -> None:
    steps = len(pictured) // size
    if steps == 0:
        return
    mixed = [b for b in batches(pictured, size, steps, seed) if len({pictured[i] for i in b}) == 2]
    assert len(mixed) <= 1


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(2, 5), st.integers(1, 9), st.integers(0, 3))
def test_labelled_batches_are_half_desirable_and_keep_pairs_together(
    pictured: list[bool], half: int, steps: int, seed: int
) -> None:
    both = [p for p in pictured for _ in range(2)]  # rows 2i and 2i + 1 are the sides of pair i
    order = balanced(both, [True, False] * len(pictured), 2 * half, steps, seed)
    pairs = batches(pictured, half, steps, seed)
    assert order == [[2 * i for i in batch] + [2 * i + 1 for i in batch] for batch in pairs]
    for batch in order:
        for k, i in enumerate(batch):
            assert len(set(batch)) < len(batch) or i // 2 != batch[k - 1] // 2, "an answer to the prompt itself"


def test_labelled_rows_need_no_partner() -> None:
    labels = [True] * 30 + [False] * 10
    order = balanced([False] * 40, labels, 8, 10, 0)
    assert all([labels[i] for i in batch] == [True] * 4 + [False] * 4 for batch in order)
    seen = Counter(i for batch in order for i in batch)
    assert {seen[i] for i in range(30)} == {1, 2}
    assert {seen[i] for i in range(30, 40)} == {4}


def test_seeds_give_different_orders() -> None:
    assert batches([True] * 64, 8, 8, 0) != batches([True] * 64, 8, 8, 1)


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), min_size=1), st.integers(0, 500))
def test_counts_are_exact(shares: dict[str, float], n: int) -> None:
    if sum(shares.values()) <= 0:
        with pytest.raises(ValueError, match="not all zero"):
            counts(shares, n)
        return
    given_rows = counts(shares, n)
    assert sum(given_rows.values()) == n
    for name, share in shares.items():
        assert abs(given_rows[name] - n * share / sum(shares.values())) < 1


def test_a_mix_holds_each_row_once_in_a_seeded_order() -> None:
    parts = [["a0", "a1", "a2"], ["b0", "b1"], []]
    mixed = Mixed(parts, 3)
    assert sorted(mixed) == ["a0", "a1", "a2", "b0", "b1"] == sorted(mixed[:])
    assert list(mixed) == list(Mixed(parts, 3))
    assert any(list(Mixed(parts, seed)) != list(mixed) for seed in range(10))
