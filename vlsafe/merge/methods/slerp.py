"""Spherical linear interpolation (Shoemake, SIGGRAPH 1985) between two models, each tensor flattened whole.

    θ = sin((1 − t)Ω) / sin Ω · θ_1 + sin(tΩ) / sin Ω · θ_2,    cos Ω = θ_1·θ_2 / (‖θ_1‖ ‖θ_2‖)

Where |cos Ω| > 0.9995, or a tensor is zero, it is linear: (1 − t) θ_1 + t θ_2. The tensors keep their norms; only the angle is
of unit vectors, as in mergekit. Tensors that training moved little are that close: for such models it is `linear`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsafe.merge.base import Interpolation, refuse_negative
from vlsafe.merge.methods.linear import Linear
from vlsafe.registry import register

if TYPE_CHECKING:
    from torch import Tensor

LINEAR_ABOVE = 0.9995  # |cos Ω|; source: mergekit


@register("merge", "slerp")
@dataclass(frozen=True, kw_only=True)
class Slerp(Interpolation):
    """`t` is the second model's share of the weights, which are never negative: 0 and 1 are the models, bit for bit."""

    max_models: ClassVar[int | None] = 2

    def check_weights(self, weights: Sequence[float]) -> None:
        super().check_weights(weights)
        refuse_negative(self, weights, "goes from one model to the other and not beyond")

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        from vlsafe.merge.numerics import elementwise, products, weighted_sum

        first, both, second = products(*tensors)
        norms = math.sqrt(first) * math.sqrt(second)
        if norms == 0 or not abs(both / norms) <= LINEAR_ABOVE:
            return Linear().merge(tensors, base, weights, name)
        angle = math.acos(both / norms)
        shares = [math.sin(weight / sum(weights) * angle) / math.sin(angle) for weight in weights]
        return elementwise(lambda *chunks: weighted_sum(chunks, shares), *tensors)
