"""Task arithmetic (Ilharco et al., ICLR 2023, arXiv 2212.04089): task vectors added to the base.

    θ = θ_0 + scale · Σ w_i δ_i,    δ_i = θ_i − θ_0

Weights are not normalised: (1, 1) adds the task vectors as the paper does. Where none are set, 1/n each adds their mean, which
at scale 1 is `linear`. A negative weight takes a task vector away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsafe.merge.base import MergeMethod
from vlsafe.registry import register
from vlsafe.settings import PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "task_arithmetic")
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(MergeMethod):
    """A single model at weight 1 and scale 1 is that model, bit for bit."""

    scale: PositiveFloat = 1.0  # λ of the paper

    needs_base: ClassVar[bool] = True
    min_models: ClassVar[int] = 1

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        from vlsafe.merge.numerics import elementwise

        assert base is not None, "merge=task_arithmetic needs the base's tensor"
        add = addition(weights, self.scale)
        return elementwise(lambda start, *models: add(start, models), base, *tensors)


def addition(weights: Sequence[float], scale: float) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """The formula on pieces: (θ_0, the θ_i) -> θ. It overwrites all of them.

    It adds models rather than task vectors, (1 − Σ scale w_i) θ_0 + Σ scale w_i θ_i: where the base's share is zero, a single
    model comes out exactly as it went in.
    """
    from vlsafe.merge.numerics import plain, weighted_sum

    shares = plain(weights)
    step = scale * weights[0] if len(set(weights)) == 1 else scale
    rest = 1 - math.fsum(scale * weight for weight in weights)

    def add(start: Tensor, models: Sequence[Tensor]) -> Tensor:
        moved = weighted_sum(models, shares).mul_(step)
        return moved.add_(start.mul_(rest)) if rest else moved

    return add
