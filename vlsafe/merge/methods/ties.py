"""TIES merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708, Algorithm 1): trim task vectors, elect signs, merge what agrees.

With δ_i = θ_i − θ_0, over each single parameter:

    trim    δ̂_i = δ_i where |δ_i| is among the model's largest `density` share, else 0
    elect   γ = sign(Σ w_i δ̂_i)
    merge   δ = Σ_{i: sign(δ̂_i) = γ ≠ 0} w_i δ̂_i, divided by the sum of the same w_i (not without `normalize`)
    θ = θ_0 + scale · δ

The share is taken over each tensor (as mergekit does), or over all merged tensors at once (`trim: model`, as the authors do).
Of magnitudes equal to the smallest one kept all are kept: the result depends on no order. Where the
weighted sum is exactly zero no sign is elected and the base stays; the authors give such parameters the commonest sign,
mergekit the positive one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vlsafe.merge.base import Merge, MergeMethod, Stream, refuse_negative
from vlsafe.registry import register
from vlsafe.settings import Fraction, PositiveFloat

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "ties")
@dataclass(frozen=True, kw_only=True)
class Ties(MergeMethod):
    """A single model at density 1 and scale 1 is that model, and a model merged with itself too, bit for bit."""

    density: Fraction = 0.5  # share of a task vector's parameters kept
    scale: PositiveFloat = 1.0  # λ of the paper: of the merged task vector
    trim: Literal["tensor", "model"] = "tensor"  # what the share is taken over
    normalize: bool = True

    needs_base: ClassVar[bool] = True
    min_models: ClassVar[int] = 1

    def check_weights(self, weights: Sequence[float]) -> None:
        super().check_weights(weights)
        refuse_negative(self, weights, "elects signs by weight")

    def prepare(self, stream: Stream, weights: Sequence[float]) -> Merge:
        if self.trim == "tensor" or self.density == 1:
            return self.merge

        def magnitudes() -> Iterable[Sequence[Tensor]]:
            for tensors, base in stream():
                assert base is not None
                yield from _magnitudes(tensors, base)

        return functools.partial(self._merge, self._cuts(magnitudes, len(weights)))

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        """By itself it takes the tensor for the whole model, so that `trim` makes no difference."""
        assert base is not None, "merge=ties needs the base's tensor"
        return self._merge(self._cuts(lambda: _magnitudes(tensors, base), len(tensors)), tensors, base, weights, name)

    def _cuts(self, magnitudes: Callable[[], Iterable[Sequence[Tensor]]], models: int) -> list[float]:
        """The smallest magnitude kept of each model; zero where everything is."""
        from vlsafe.merge.numerics import cuts

        return [0.0] * models if self.density == 1 else cuts(magnitudes, models, self.density)

    def _merge(
        self, cuts: Sequence[float], tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str
    ) -> Tensor:
        import torch
        from torch.nn.functional import hardshrink

        from vlsafe.merge.numerics import elementwise

        elect_and_merge = election(weights, self.scale, self.normalize)
        # What is at or above the cut: `hardshrink` zeroes what is not above its argument.
        below = [float(torch.nextafter(torch.tensor(cut), torch.tensor(0.0))) for cut in cuts]

        def trim_and_merge(start: Tensor, *models: Tensor) -> Tensor:
            deltas = [delta_of(model, start) for model in models]
            kept = [hardshrink(delta, low) if cut else delta for delta, low, cut in zip(deltas, below, cuts, strict=True)]
            return elect_and_merge(start, models, kept)

        return elementwise(trim_and_merge, base, *tensors)


def election(
    weights: Sequence[float], scale: float, normalize: bool
) -> Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]:
    """TIES after the trimming, on pieces: (θ_0, the θ_i, the δ̂_i) -> θ. It overwrites θ_0."""
    import torch

    from vlsafe.merge.numerics import plain

    shares = plain(weights) if normalize else list(weights)

    def elect_and_merge(start: Tensor, models: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
        kept = [delta.double() for delta in kept]
        elected = torch.zeros_like(start)
        for share, delta in zip(shares, kept, strict=True):
            elected.add_(delta * share)
        elected.sign_()
        # Means of weights rather than of task vectors: where a single model agrees, it comes out exactly as it went in.
        agreeing, total = torch.zeros_like(start), torch.zeros_like(start)
        for share, delta, model in zip(shares, kept, models, strict=True):
            agrees = (elected * delta).sign_().clamp_(min=0).mul_(share)
            agreeing.add_(agrees)
            total.add_(agrees.mul_(model))
        if not normalize:
            return total.sub_(agreeing.mul_(start)).mul_(scale).add_(start)
        nobody = 1 - agreeing.sign()
        mean = total.add_(nobody * start).div_(agreeing.add_(nobody))
        return mean if scale == 1 else mean.mul_(scale).add_(start.mul_(1 - scale))

    return elect_and_merge


def delta_of(model: Tensor, base: Tensor) -> Tensor:
    """A piece of the task vector, which is trimmed and elects in float32 whatever the models' dtype."""
    return (model - base).float()


def _magnitudes(tensors: Sequence[Tensor], base: Tensor) -> Iterator[Sequence[Tensor]]:
    """Matching pieces of each |θ_i − θ_0|."""
    from vlsafe.merge.numerics import pieces

    for start, *models in pieces(base, *tensors):
        yield [delta_of(model, start).abs_() for model in models]
