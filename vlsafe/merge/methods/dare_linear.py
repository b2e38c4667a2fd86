"""DARE with task arithmetic (Yu et al., ICML 2024, arXiv 2311.03099): task vectors are thinned at random, rescaled and added.

With δ̃_i of `vlsafe/merge/drop.py` it is θ = θ_0 + scale · Σ w_i δ̃_i; weights are as in `task_arithmetic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlsafe.merge.drop import DropMethod
from vlsafe.merge.methods.task_arithmetic import addition
from vlsafe.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "dare_linear")
@dataclass(frozen=True, kw_only=True)
class DareLinear(DropMethod):
    """At density 1 it is `task_arithmetic`, bit for bit."""

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        from vlsafe.merge.numerics import elementwise

        assert base is not None, "merge=dare_linear needs the base's tensor"
        drops, add = self.drops(tensors, base, name), addition(weights, self.scale)

        def drop_and_add(start: Tensor, *models: Tensor) -> Tensor:
            return add(start, [drop(model, start) for drop, model in zip(drops, models, strict=True)])

        return elementwise(drop_and_add, base, *tensors)
