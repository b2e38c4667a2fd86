"""Model Breadcrumbs (Davari and Belilovsky, ECCV 2024, arXiv 2312.06795): task vectors without outliers and negligible changes.

    θ = θ_0 + scale · Σ w_i m_i δ_i,    δ_i = θ_i − θ_0

In each tensor, m_i is 0 for the `gamma` share of δ_i that is largest in magnitude, 1 for the `density` share that comes next,
and 0 for the rest. (The parameters are called as in mergekit.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsafe.errors import ConfigError
from vlsafe.merge.base import MergeMethod
from vlsafe.registry import register
from vlsafe.settings import Fraction, PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "breadcrumbs")
@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(MergeMethod):
    """At density 1 and gamma 0 it is `task_arithmetic`."""

    density: Fraction = 0.9  # share of a task vector's parameters kept
    gamma: Fraction = 0.01  # share dropped at the top
    scale: PositiveFloat = 1.0  # α of the paper

    needs_base: ClassVar[bool] = True
    min_models: ClassVar[int] = 1

    def check(self) -> None:
        super().check()
        if self.density + self.gamma > 1:
            raise ConfigError(
                f"merge.density={self.density:g}: with merge.gamma={self.gamma:g} it is more than all; lower one of the two"
            )

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        from vlsafe.merge.numerics import cuts, elementwise, pieces

        assert base is not None, "merge=breadcrumbs needs the base's tensor"

        def magnitudes() -> Iterator[Sequence[Tensor]]:
            for start, *models in pieces(base, *tensors):
                yield [(model - start).float().abs() for model in models]

        lowest = cuts(magnitudes, len(tensors), self.density + self.gamma)
        highest = cuts(magnitudes, len(tensors), self.gamma)

        def add(start: Tensor, *models: Tensor) -> Tensor:
            merged = start.clone()
            for model, weight, low, high in zip(models, weights, lowest, highest, strict=True):
                delta = model - start
                size = delta.float().abs()
                merged += self.scale * weight * delta * ((size >= low) & (size < high))
            return merged

        return elementwise(add, base, *tensors)
