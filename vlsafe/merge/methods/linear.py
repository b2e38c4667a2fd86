"""Linear merging (model soups: Wortsman et al., ICML 2022, arXiv 2203.05482): the weighted mean of the models' weights.

    θ = Σ w_i θ_i / Σ w_i        (without `normalize`: Σ w_i θ_i)

No base is needed. A model merged with itself is itself, bit for bit; a weight of zero leaves its model out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlsafe.errors import ConfigError
from vlsafe.merge.base import Interpolation
from vlsafe.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "linear")
@dataclass(frozen=True, kw_only=True)
class Linear(Interpolation):
    """Weighted mean, or weighted sum without `normalize`. Weights may be negative (extrapolation) unless their sum is zero;
    for two models `t` says as much as the weights (1 − t, t)."""

    normalize: bool = True

    def check_weights(self, weights: Sequence[float]) -> None:
        super().check_weights(weights)
        if self.normalize and abs(sum(weights)) < 1e-9 * max(map(abs, weights)):
            raise ConfigError(f"merge.weights={list(weights)}: sum to zero, and normalize divides by that; set normalize=false")

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        from vlsafe.merge.numerics import elementwise, plain, weighted_sum

        shares = plain(weights) if self.normalize else list(weights)

        def weighted_mean(*chunks: Tensor) -> Tensor:
            summed = weighted_sum(chunks, shares)
            return summed.div_(sum(shares)) if self.normalize else summed

        return elementwise(weighted_mean, *tensors)
