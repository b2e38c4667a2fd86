"""The arithmetic under the methods: exact cuts, norms, and the test for finite values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlsafe.merge.numerics import PIECE, all_finite, cuts, gram, products, total

MAGNITUDES = st.lists(st.sampled_from([0.0, 1e-44, 0.5, 1.0, 1.0000001, 3e38]) | st.floats(0, 2.0**100, width=32), min_size=1)


@given(MAGNITUDES, st.floats(0.01, 1), st.integers(1, 5))
def test_a_cut_is_what_sorting_finds(values: list[float], density: float, size: int) -> None:
    tensor = torch.tensor(values)
    wanted = sorted(tensor.tolist(), reverse=True)[max(1, round(density * len(values))) - 1]
    assert cuts(lambda: ([piece, piece] for piece in tensor.split(size)), 2, density) == [wanted, wanted]


def test_no_share_is_above_everything() -> None:
    assert cuts(lambda: [[torch.ones(3)]], 1, 0.0) == [float("inf")]


def test_norms_of_differences_survive_large_weights() -> None:
    start = 1e4 + torch.arange(PIECE + 10, dtype=torch.float32)
    moved = start + 1 / 128
    products = gram(start, moved, start)
    assert products[1][1] == pytest.approx((PIECE + 10) / 128**2, rel=1e-12)
    assert products[2] == [0.0, 0.0, 0.0]
    assert products[0][0] == pytest.approx(float((start.double() ** 2).sum()), rel=1e-12)


def test_products_exchange_with_the_tensors_and_forget_the_threads() -> None:
    one, other = (torch.randn(PIECE + 50_001, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = products(one, other)
        torch.set_num_threads(2)
        assert products(one, other) == found
        wide = one.double()
        assert total(wide) == pytest.approx(float(wide.sum()), rel=1e-12)
    finally:
        torch.set_num_threads(before)
    assert products(other, one) == found[::-1]
    assert found == pytest.approx([float(x.double() @ y.double()) for x, y in ((one, one), (one, other), (other, other))])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_bad_value_is_found(dtype: torch.dtype) -> None:
    tensor = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensor)
    for bad in (float("nan"), float("inf"), -float("inf")):
        tensor[7] = bad
        assert not all_finite(tensor)
    tensor[7:9] = torch.tensor([float("inf"), -float("inf")], dtype=dtype)
    assert not all_finite(tensor)
