"""DARE with TIES (Yu et al., ICML 2024, arXiv 2311.03099): dropping at random in place of TIES' trimming by magnitude.

Task vectors are thinned and rescaled (δ̃_i of `vlsafe/merge/drop.py`); then signs are elected and what agrees is merged, as in
`vlsafe/merge/methods/ties.py` with δ̃_i for δ̂_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlsafe.merge.base import refuse_negative
from vlsafe.merge.drop import DropMethod
from vlsafe.merge.methods.ties import delta_of, election
from vlsafe.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "dare_ties")
@dataclass(frozen=True, kw_only=True)
class DareTies(DropMethod):
    """At density 1 it is `ties` at density 1, bit for bit."""

    normalize: bool = True

    def check_weights(self, weights: Sequence[float]) -> None:
        super().check_weights(weights)
        refuse_negative(self, weights, "elects signs by weight")

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        from vlsafe.merge.numerics import elementwise

        assert base is not None, "merge=dare_ties needs the base's tensor"
        drops, elect_and_merge = self.drops(tensors, base, name), election(weights, self.scale, self.normalize)

        def drop_and_merge(start: Tensor, *models: Tensor) -> Tensor:
            thinned = [drop(model, start) for drop, model in zip(drops, models, strict=True)]
            return elect_and_merge(start, thinned, [delta_of(model, start) for model in thinned])

        return elementwise(drop_and_merge, base, *tensors)
