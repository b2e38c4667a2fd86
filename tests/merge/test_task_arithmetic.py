"""Task arithmetic: identities, invariances, and the formula against a slow reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsafe.errors import ConfigError
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.methods.task_arithmetic import TaskArithmetic

VALUES = st.floats(-100, 100, width=32)
WEIGHTS = st.sampled_from([-1.0, -0.3, 0.0, 0.3, 0.5, 1.0, 2.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[float]], list[float], list[float]]:
    """(values of one to four models, the base's, a weight each)."""
    models, size = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    row = st.lists(VALUES, min_size=size, max_size=size)
    weights = draw(st.lists(WEIGHTS, min_size=models, max_size=models).filter(any))
    return draw(st.lists(row, min_size=models, max_size=models)), draw(row), weights


@given(cases(), st.sampled_from([0.3, 1.0, 1.7]))
def test_it_is_the_formula(case: tuple[list[list[float]], list[float], list[float]], scale: float) -> None:
    values, base, weights = case
    expected = [
        start + scale * sum(w * (v - start) for w, v in zip(weights, column, strict=True))
        for start, *column in zip(base, *values, strict=True)
    ]
    got = TaskArithmetic(scale=scale).merge([torch.tensor(v) for v in values], torch.tensor(base), weights, "x")
    assert got.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def randoms(count: int, size: int = 70_000, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_model_is_that_model(dtype: torch.dtype) -> None:
    base, model = randoms(2, dtype=dtype)
    model[:3] = torch.tensor([-0.0, 1e-20, 1e-38])  # lost beside a base of about 1, if task vectors were added
    merged = TaskArithmetic().merge([model], base, [1.0], "x").to(dtype)
    assert torch.equal(merged, model)
    assert torch.equal(merged.signbit(), model.signbit())
    for weights in ([0.5, 0.5], [0.7, 0.3], [0.1] * 10):
        assert torch.equal(TaskArithmetic().merge([model] * len(weights), base, weights, "x").to(dtype), model)


def test_where_weights_sum_to_one_it_is_linear() -> None:
    base, *models = randoms(4)
    for weights in ([0.5, 0.5], [0.25, 0.75]):
        merged = TaskArithmetic().merge(models[:2], base, weights, "x")
        assert torch.equal(merged, Linear().merge(models[:2], None, weights, "x"))


def test_a_task_vector_added_and_taken_away_leaves_the_base() -> None:
    base, model = randoms(2)
    assert torch.equal(TaskArithmetic().merge([base, model], base, [1.0, 0.0], "x"), base)
    torch.testing.assert_close(TaskArithmetic().merge([model, model], base, [1.0, -1.0], "x"), base)


def test_scale_is_a_factor_of_all_weights() -> None:
    base, *models = randoms(4)
    merged = TaskArithmetic(scale=0.5).merge(models, base, [1.0, 2.0, 0.5], "x")
    assert torch.equal(TaskArithmetic().merge(models, base, [0.5, 1.0, 0.25], "x"), merged)


def test_equal_weights_forget_the_order() -> None:
    base, *models = randoms(5)
    merged = TaskArithmetic(scale=0.7).merge(models, base, [0.3] * 4, "x")
    for order in itertools.islice(itertools.permutations(range(4)), 1, 24, 7):
        assert torch.equal(TaskArithmetic(scale=0.7).merge([models[i] for i in order], base, [0.3] * 4, "x"), merged)


def test_weights_that_can_not_be() -> None:
    TaskArithmetic(weights=(1.0, -1.0)).check()
    with pytest.raises(ConfigError, match="all are zero"):
        TaskArithmetic(weights=(0.0, 0.0)).check()
    with pytest.raises(ConfigError, match="takes at least 1 models, not 0"):
        TaskArithmetic(models=()).check()
