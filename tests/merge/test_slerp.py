"""Slerp: identities, symmetry, and the formula against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from vlsafe.errors import ConfigError
from vlsafe.merge.base import MergeMethod
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.methods.slerp import Slerp

ROW = st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3)
SHARE = st.floats(0, 1)


def reference(one: list[float], other: list[float], t: float) -> list[float]:
    norms = math.hypot(*one) * math.hypot(*other)
    cosine = sum(a * b for a, b in zip(one, other, strict=True)) / norms if norms else 1.0
    if abs(cosine) > 0.9995:
        return [(1 - t) * a + t * b for a, b in zip(one, other, strict=True)]
    angle = math.acos(cosine)
    return [
        (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle) for a, b in zip(one, other, strict=True)
    ]


def randoms(count: int, size: int = 70_000, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]


@given(ROW, ROW, SHARE)
def test_it_is_the_formula(one: list[float], other: list[float], t: float) -> None:
    norms = math.hypot(*one) * math.hypot(*other)
    cosine = sum(a * b for a, b in zip(one, other, strict=True)) / norms if norms else 0.0
    assume(abs(abs(cosine) - 0.9995) > 1e-9)
    got = Slerp().merge([torch.tensor(one), torch.tensor(other)], None, [1 - t, t], "x")
    assert got.tolist() == pytest.approx(reference(one, other, t), rel=1e-5, abs=1e-5)


def test_unit_vectors_stay_on_the_sphere_and_a_right_angle_is_divided() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    third = Slerp().merge([one, other], None, [2.0, 1.0], "x")
    assert third.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    one, other = (x / x.norm() for x in randoms(2))
    assert float(Slerp().merge([one, other], None, [0.3, 0.7], "x").norm()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_the_models(dtype: torch.dtype) -> None:
    one, other = randoms(2, dtype=dtype)
    one[0] = -0.0
    for t, end in ((0.0, one), (1.0, other)):
        merged = Slerp().merge([one, other], None, Slerp(t=t).resolved(2).weights or (), "x").to(dtype)
        assert torch.equal(merged, end)
        assert torch.equal(merged.signbit(), end.signbit())


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), SHARE)
def test_a_model_merged_with_itself_is_itself(values: list[float], t: float) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(Slerp().merge([tensor, tensor], None, [1 - t, t], "x"), tensor)


def test_close_opposite_and_zero_tensors_are_merged_linearly() -> None:
    one, noise = randoms(2)

    def linear_too(other: torch.Tensor, weights: list[float]) -> bool:
        models = [one, other]
        return torch.equal(Slerp().merge(models, None, weights, "x"), Linear().merge(models, None, weights, "x"))

    for weights in ([0.3, 0.7], [1.0, 1.0]):
        assert all(linear_too(other, weights) for other in (one + 0.01 * noise, -one, torch.zeros_like(one)))
        assert not linear_too(one + 0.1 * noise, weights)


def test_the_shape_of_a_tensor_changes_nothing() -> None:
    one, other = randoms(2)
    flat = Slerp().merge([one, other], None, [0.3, 0.7], "x")
    folded = Slerp().merge([one.reshape(700, 100), other.reshape(700, 100)], None, [0.3, 0.7], "x")
    assert folded.shape == (700, 100)
    assert torch.equal(folded.flatten(), flat)


def test_exchanged_models_and_weights_are_the_same_merge() -> None:
    one, other = randoms(2)
    for weights in ([1.0, 1.0], [0.3, 0.7]):
        merged = Slerp().merge([one, other], None, weights, "x")
        assert torch.equal(Slerp().merge([other, one], None, weights[::-1], "x"), merged)


def test_it_is_of_two_models_and_between_them() -> None:
    with pytest.raises(ConfigError, match="merge=slerp takes at least 2 and at most 2 models, not 3"):
        Slerp(models=("base", "adapted", "tuned")).check()
    with pytest.raises(ConfigError, match="not beyond, so none may be negative"):
        Slerp(weights=(1.5, -0.5)).check()
    with pytest.raises(ConfigError, match="all are zero"):
        Slerp(weights=(0.0, 0.0)).check()
    method: MergeMethod = Slerp(weights=(3.0, 1.0))
    method.check()
