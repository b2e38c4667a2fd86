"""Linear merging: identities, invariances, and the formula against a slow reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsafe.errors import ConfigError
from vlsafe.merge.methods.linear import Linear

VALUES = st.floats(-1e6, 1e6, width=32)
WEIGHTS = st.floats(-4, 4).filter(lambda w: abs(w) > 1e-3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[float]], list[float]]:
    """(values of two to four models, a weight each)."""
    models, size = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    values = draw(st.lists(st.lists(VALUES, min_size=size, max_size=size), min_size=models, max_size=models))
    return values, draw(st.lists(WEIGHTS, min_size=models, max_size=models))


@given(cases())
def test_it_is_the_formula(case: tuple[list[list[float]], list[float]]) -> None:
    values, weights = case
    plain = [sum(w * v for w, v in zip(weights, column, strict=True)) for column in zip(*values, strict=True)]
    tensors = [torch.tensor(v) for v in values]
    size = max(abs(v) for row in values for v in row) * max(map(abs, weights))
    got = Linear(normalize=False).merge(tensors, None, weights, "x")
    assert got.tolist() == pytest.approx(plain, rel=1e-6, abs=1e-9 * size + 1e-30)
    if abs(sum(weights)) > 0.1:
        got = Linear().merge(tensors, None, weights, "x")
        assert got.tolist() == pytest.approx([p / sum(weights) for p in plain], rel=1e-6, abs=1e-7 * size + 1e-30)


@given(st.lists(VALUES, min_size=1, max_size=20), st.lists(st.floats(0.01, 9), min_size=1, max_size=4))
def test_a_model_merged_with_itself_is_itself(values: list[float], weights: list[float]) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(Linear().merge([tensor] * len(weights), None, weights, "x"), tensor)


def test_a_weight_of_zero_leaves_its_model_out() -> None:
    one, other = torch.tensor([1.0, -0.0, 3.1]), torch.tensor([5.0, 6.0, 7.0])
    merged = Linear().merge([one, other], None, [2.5, 0.0], "x")
    assert torch.equal(merged, one)
    assert torch.signbit(merged[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_weights_forget_the_order(dtype: torch.dtype) -> None:
    tensors = [torch.randn(70_000, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(4)]
    merged = Linear().merge(tensors, None, [0.25] * 4, "x")
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        assert torch.equal(Linear().merge([tensors[i] for i in order], None, [0.25] * 4, "x"), merged)
    assert torch.equal(Linear().merge(tensors, None, [7.0] * 4, "x"), merged)


def test_narrow_models_are_averaged_wide_and_left_as_they_were() -> None:
    one, other = torch.full((3,), 1.0, dtype=torch.bfloat16), torch.full((3,), 1.0078125, dtype=torch.bfloat16)
    merged = Linear().merge([one, other], None, [1.0, 1.0], "x")
    assert merged.dtype == torch.float32
    assert merged.tolist() == [1.00390625] * 3  # which bfloat16 can't hold
    assert one.tolist() == [1.0] * 3 and other.tolist() == [1.0078125] * 3


def test_the_number_of_threads_changes_nothing() -> None:
    tensors = [torch.randn(300_000, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = Linear().merge(tensors, None, [0.2, 0.3, 0.5], "x")
        torch.set_num_threads(2)
        assert torch.equal(Linear().merge(tensors, None, [0.2, 0.3, 0.5], "x"), one)
    finally:
        torch.set_num_threads(before)


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"merge\.weights=\[1\.0, -1\.0\]: sum to zero.*normalize=false"):
        Linear(weights=(1.0, -1.0)).check()
    Linear(weights=(1.0, -1.0), normalize=False).check()
    Linear(weights=(1.5, -0.5)).check()
    with pytest.raises(ConfigError, match="all are zero"):
        Linear(weights=(0.0, 0.0), normalize=False).check()
    with pytest.raises(ConfigError, match="3 weights for 2 models"):
        Linear(weights=(1.0, 1.0, 1.0)).check()
