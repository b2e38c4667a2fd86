"""DARE with TIES: the undropped method at density 1, and a slow reference parameter by parameter."""

from __future__ import annotations

import pytest
import torch

from vlsafe.errors import ConfigError
from vlsafe.merge.drop import mask
from vlsafe.merge.methods.dare_ties import DareTies
from vlsafe.merge.methods.ties import Ties


def randoms(count: int, size: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_it_is_ties_without_trimming(normalize: bool, dtype: torch.dtype) -> None:
    base, *models = randoms(4, 70_000, dtype)
    for weights, scale in (([1.0] * 3, 1.0), ([0.7, 0.2, 0.4], 0.6)):
        whole = DareTies(density=1.0, normalize=normalize, scale=scale).merge(models, base, weights, "x")
        assert torch.equal(whole, Ties(density=1.0, normalize=normalize, scale=scale).merge(models, base, weights, "x"))
    assert torch.equal(DareTies(density=1.0).merge(models[:1], base, [0.7], "x").to(dtype), models[0])


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.7, 0.2, 1.1]])
@pytest.mark.parametrize("rescale", ["density", "l1"])
@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_dropping_and_then_electing(weights: list[float], rescale: str, normalize: bool) -> None:
    base, *models = randoms(1 + len(weights), 50)
    thinned = []
    for position, model in enumerate(models):
        kept = mask(0.4, 5, position, "x")(50).tolist()
        deltas = [v - s for v, s in zip(model.tolist(), base.tolist(), strict=True)]
        left = sum(abs(d) for d, k in zip(deltas, kept, strict=True) if k)
        factor = 1 / 0.4 if rescale == "density" else sum(map(abs, deltas)) / left
        thinned.append([factor * d if k else 0.0 for d, k in zip(deltas, kept, strict=True)])
    expected = []
    for start, *column in zip(base.tolist(), *thinned, strict=True):
        vote = sum(w * d for w, d in zip(weights, column, strict=True))
        agree = [(w, d) for w, d in zip(weights, column, strict=True) if d * vote > 0]
        summed, share = sum(w * d for w, d in agree), sum(w for w, _ in agree)
        expected.append(start + 0.8 * (summed / share if normalize and agree else summed))
    method = DareTies(density=0.4, rescale=rescale, scale=0.8, normalize=normalize, seed=5)  # type: ignore[arg-type]
    assert method.merge(models, base, weights, "x").tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_negative_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="merge=dare_ties elects signs by weight, so none may be negative"):
        DareTies(weights=(1.5, -0.5)).check()
