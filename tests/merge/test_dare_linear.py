"""DARE with task arithmetic: the undropped method at density 1, and a slow reference parameter by parameter."""

from __future__ import annotations

import pytest
import torch

from vlsafe.merge.drop import mask
from vlsafe.merge.methods.dare_linear import DareLinear
from vlsafe.merge.methods.task_arithmetic import TaskArithmetic


def randoms(count: int, size: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]


@pytest.mark.parametrize("rescale", ["density", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_it_is_task_arithmetic(rescale: str, dtype: torch.dtype) -> None:
    base, *models = randoms(3, 70_000, dtype)
    for weights, scale in (([1.0, 1.0], 0.4), ([0.7, -0.3], 1.0), ([0.5, 0.5], 1.0)):
        whole = DareLinear(density=1.0, rescale=rescale, scale=scale).merge(models, base, weights, "x")  # type: ignore[arg-type]
        assert torch.equal(whole, TaskArithmetic(scale=scale).merge(models, base, weights, "x"))
    assert torch.equal(DareLinear(density=1.0).merge(models[:1], base, [1.0], "x").to(dtype), models[0])


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.7, -0.2, 1.1]])
@pytest.mark.parametrize("rescale", ["density", "l1"])
def test_it_is_the_formula(weights: list[float], rescale: str) -> None:
    base, *models = randoms(1 + len(weights), 50)
    expected = base.tolist()
    for position, (weight, model) in enumerate(zip(weights, models, strict=True)):
        kept = mask(0.4, 5, position, "x")(50).tolist()
        deltas = [v - s for v, s in zip(model.tolist(), base.tolist(), strict=True)]
        left = sum(abs(d) for d, k in zip(deltas, kept, strict=True) if k)
        factor = 1 / 0.4 if rescale == "density" else sum(map(abs, deltas)) / left
        for place in range(50):
            if kept[place]:
                expected[place] += 0.8 * weight * factor * deltas[place]
    method = DareLinear(density=0.4, rescale=rescale, scale=0.8, seed=5)  # type: ignore[arg-type]
    assert method.merge(models, base, weights, "x").tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
