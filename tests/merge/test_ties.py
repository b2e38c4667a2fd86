"""TIES: identities, invariances, and Algorithm 1 against a slow reference written parameter by parameter."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsafe.errors import ConfigError
from vlsafe.merge.methods.ties import Ties

# Multiples of 1/8, so that the reference's sums are exact and signs never depend on rounding.
VALUES = st.integers(-40, 40).map(lambda n: n / 8)
WEIGHTS = st.sampled_from([0.25, 0.5, 1.0, 2.0])


def reference(
    values: list[list[float]], base: list[float], weights: list[float], density: float, scale: float, normalize: bool
) -> list[float]:
    deltas = [[v - b for v, b in zip(row, base, strict=True)] for row in values]
    kept = []
    for delta in deltas:
        k = max(1, round(density * len(delta))) if density else 0
        cut = sorted((abs(d) for d in delta), reverse=True)[k - 1] if k else float("inf")
        kept.append([d if abs(d) >= cut else 0.0 for d in delta])
    out = []
    for place, start in enumerate(base):
        column = [row[place] for row in kept]
        vote = sum(w * d for w, d in zip(weights, column, strict=True))
        agree = [(w, d) for w, d in zip(weights, column, strict=True) if d * vote > 0]
        total, share = sum(w * d for w, d in agree), sum(w for w, _ in agree)
        out.append(start + scale * (total / share if normalize and agree else total))
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[float]], list[float], list[float]]:
    """(values of one to four models, the base's, a weight each)."""
    models, size = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    row = st.lists(VALUES, min_size=size, max_size=size)
    weights = draw(st.lists(WEIGHTS, min_size=models, max_size=models))
    return draw(st.lists(row, min_size=models, max_size=models)), draw(row), weights


@given(cases(), st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.8, 1.0]), st.sampled_from([0.3, 1.0, 1.7]), st.booleans())
def test_it_is_algorithm_1(
    case: tuple[list[list[float]], list[float], list[float]], density: float, scale: float, norm: bool
) -> None:
    values, base, weights = case
    method = Ties(density=density, scale=scale, normalize=norm)
    got = method.merge([torch.tensor(v) for v in values], torch.tensor(base), weights, "x")
    assert got.tolist() == pytest.approx(reference(values, base, weights, density, scale, norm), rel=1e-6, abs=1e-6)


def randoms(count: int, size: int = 70_000, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_model_whole_is_that_model(dtype: torch.dtype) -> None:
    base, model = randoms(2, dtype=dtype)
    merged = Ties(density=1.0).merge([model], base, [0.7], "x")
    assert torch.equal(merged.to(dtype), model)
    # So does a model that only agrees with itself, and one beside the base, whose task vector is zero.
    assert torch.equal(Ties(density=1.0).merge([model, model], base, [0.3, 0.6], "x").to(dtype), model)
    assert torch.equal(Ties(density=1.0).merge([base, model], base, [1.0, 1.0], "x").to(dtype), model)


def test_nothing_kept_is_the_base() -> None:
    base, one, other = randoms(3)
    assert torch.equal(Ties(density=0.0).merge([one, other], base, [1.0, 1.0], "x"), base)


def test_opposite_task_vectors_leave_the_base() -> None:
    base = torch.tensor([1.0, 2.0])
    delta = torch.tensor([0.5, -0.25])
    for normalize in (True, False):
        method = Ties(density=1.0, normalize=normalize)
        assert torch.equal(method.merge([base + delta, base - delta], base, [1.0, 1.0], "x"), base)


def test_equal_weights_forget_the_order() -> None:
    base, *models = randoms(5)
    for method in (Ties(density=0.3), Ties(density=0.3, normalize=False, scale=0.4)):
        merged = method.merge(models, base, [1.0] * 4, "x")
        for order in itertools.islice(itertools.permutations(range(4)), 1, 24, 7):
            assert torch.equal(method.merge([models[i] for i in order], base, [1.0] * 4, "x"), merged)


def test_the_order_of_parameters_changes_nothing_even_among_equal_magnitudes() -> None:
    base = torch.zeros(6)
    model = torch.tensor([1.0, -1.0, 1.0, 2.0, 0.5, -1.0])
    merged = Ties(density=0.5).merge([model], base, [1.0], "x")
    assert merged.tolist() == [1.0, -1.0, 1.0, 2.0, 0.0, -1.0]  # three were asked for; the four equal ones stay together
    shuffled = torch.tensor([5, 0, 4, 3, 1, 2])
    assert torch.equal(Ties(density=0.5).merge([model[shuffled]], base, [1.0], "x"), merged[shuffled])


def test_the_share_is_of_a_tensor_or_of_the_whole_model() -> None:
    base = [torch.zeros(4), torch.zeros(4)]
    models = [[torch.tensor([4.0, 3.0, 2.0, 1.0])], [torch.tensor([0.4, 0.3, 0.2, 0.1])]]

    def merged(trim: str) -> list[list[float]]:
        method = Ties(density=0.5, trim=trim)  # type: ignore[arg-type]
        call = method.prepare(lambda: zip(models, base, strict=True), [1.0])
        return [call(tensors, start, [1.0], "x").tolist() for tensors, start in zip(models, base, strict=True)]

    assert merged("tensor") == [[4.0, 3.0, 0.0, 0.0], [pytest.approx(0.4), pytest.approx(0.3), 0.0, 0.0]]
    assert merged("model") == [[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]


def test_over_the_whole_model_it_is_one_long_tensor() -> None:
    base, *models = randoms(4)
    cutting = (10_000, 60_000)
    method = Ties(density=0.2, trim="model")
    pieces = list(zip(*[tensor.split(cutting) for tensor in models], strict=True))
    call = method.prepare(lambda: zip(pieces, base.split(cutting), strict=True), [1.0, 2.0, 0.5])
    parts = [call(p, b, [1.0, 2.0, 0.5], "x") for p, b in zip(pieces, base.split(cutting), strict=True)]
    assert torch.equal(torch.cat(parts), Ties(density=0.2).merge(models, base, [1.0, 2.0, 0.5], "x"))


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="elects signs by weight, so none may be negative"):
        Ties(weights=(1.5, -0.5)).check()
