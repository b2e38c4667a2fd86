"""Rates count what they say they count, and their intervals are Wilson's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlsafe.errors import CheckError
from vlsafe.eval.base import Label
from vlsafe.eval.metrics import metrics, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)  # the last: Newcombe (1998), table I
def test_intervals_are_the_published_ones(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_hold_the_rate_mirror_and_solve_the_score_equation(kn: tuple[int, int]) -> None:
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == (pytest.approx(1 - high), pytest.approx(1 - low))
    for end in (low, high):
        if 0 < end < 1:
            assert abs(k / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 4), (5, 4)])
def test_what_is_no_proportion_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(k, n)


def test_asr_counts_answers_and_reports_what_answers_nothing_beside_it() -> None:
    labels: list[Label] = ["answered"] * 2 + ["refused"] * 5 + ["other"] * 3
    asr, other = metrics("text_safety", labels)
    assert (asr.name, asr.value, asr.n) == ("asr", 0.2, 10)
    assert (other.name, other.value, other.n) == ("other_rate", 0.3, 10)


def test_each_axis_has_its_headline() -> None:
    (refusal,) = metrics("over_refusal", ["refused", "answered", "answered", "other"])
    (accuracy,) = metrics("helpfulness", ["correct", "incorrect", "correct", "correct"])
    assert (refusal.name, refusal.value) == ("refusal_rate", 0.25)
    assert (accuracy.name, accuracy.value) == ("accuracy", 0.75)


def test_unparsed_answers_are_neither_safe_nor_counted() -> None:
    asr, other, unparsed = metrics("multimodal_safety", ["answered", "refused", "unparsed", "unparsed"])
    assert (asr.value, asr.n, other.n) == (0.5, 2, 2)
    assert (unparsed.name, unparsed.value, unparsed.n) == ("unparsed_rate", 0.5, 4)


def test_nothing_to_count_has_no_value() -> None:
    for labels in ([], ["unparsed", "unparsed"]):
        first = metrics("text_safety", labels)[0]  # type: ignore[arg-type]
        assert (first.value, first.n, first.low, first.high) == (None, 0, None, None)


def test_labels_of_another_axis_are_an_error() -> None:
    with pytest.raises(CheckError, match="axis over_refusal hold 'correct'"):
        metrics("over_refusal", ["refused", "correct"])
