"""Dropping task vectors at random (DARE: Yu et al., ICML 2024, arXiv 2311.03099): what `dare_linear` and `dare_ties` share.

With δ_i = θ_i − θ_0, over each single parameter:

    drop      m_i = 1 with probability `density`, else 0
    rescale   δ̃_i = m_i δ_i / density                      (`density`, the paper's equation; E[δ̃_i] = δ_i)
              δ̃_i = m_i δ_i · ‖δ_i‖_1 / ‖m_i δ_i‖_1         (`l1`, as mergekit does: each tensor keeps its L1 norm)

A mask depends on the seed, the model's position and the tensor's canonical name, and on nothing else: not on the order of
tensors, on other tensors or on threads. What a smaller density keeps, a larger one keeps too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vlsafe.errors import ConfigError
from vlsafe.keys import digest
from vlsafe.merge.base import MergeMethod
from vlsafe.settings import Fraction, PositiveFloat, Seed

if TYPE_CHECKING:
    from torch import Tensor

# (a model's piece, the base's) -> the model's piece with its task vector thinned; called on a tensor's pieces in their order.
Drop = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class DropMethod(MergeMethod):
    """Thins the task vectors, then merges what is left. At density 1 it is that merge, bit for bit.

    The masks belong to positions: models in another order, or one model twice, are thinned differently each.
    """

    density: Fraction = 0.5  # share of a task vector's parameters kept, 1 − p of the paper
    rescale: Literal["density", "l1"] = "density"
    scale: PositiveFloat = 1.0  # λ: of the merged task vector
    seed: Seed = 0  # of the masks

    needs_base: ClassVar[bool] = True
    min_models: ClassVar[int] = 1

    def check(self) -> None:
        super().check()
        if self.density == 0:
            raise ConfigError(
                f"merge.density=0: merge={self.component_name} drops everything and has nothing to rescale; set it above 0"
            )

    def drops(self, tensors: Sequence[Tensor], base: Tensor, name: str) -> list[Drop]:
        """One for each model. With `l1` each tensor is read, and its mask drawn, once more."""
        return [self._drop(tensor, base, position, name) for position, tensor in enumerate(tensors)]

    def _drop(self, tensor: Tensor, base: Tensor, position: int, name: str) -> Drop:
        import torch

        if self.density == 1:
            return lambda model, start: model
        factor = 1 / self.density if self.rescale == "density" else self._l1_factor(tensor, base, position, name)
        kept = mask(self.density, self.seed, position, name)

        def drop(model: Tensor, start: Tensor) -> Tensor:
            return torch.where(kept(start.numel()), (model - start).mul_(factor).add_(start), start)

        return drop

    def _l1_factor(self, tensor: Tensor, base: Tensor, position: int, name: str) -> float:
        """‖δ‖_1 / ‖m δ‖_1 of the whole tensor; 1 where nothing that differs is kept."""
        from vlsafe.merge.numerics import pieces, total

        kept, whole, left = mask(self.density, self.seed, position, name), 0.0, 0.0
        for model, start in pieces(tensor, base):
            magnitudes = model.sub_(start).abs_()
            whole += total(magnitudes)
            left += total(magnitudes.mul_(kept(start.numel())))
        return whole / left if left else 1.0


def mask(density: float, seed: int, position: int, name: str) -> Callable[[int], Tensor]:
    """Draws a tensor's mask (True: kept) in pieces of any size, for a density below 1; numpy keeps its raw stream stable."""
    import numpy as np
    import torch

    stream = np.random.PCG64(int(digest({"dare": seed, "position": position, "name": name}), 16))
    below = np.uint64(int(density * 2.0**64))
    return lambda count: torch.from_numpy(stream.random_raw(count) < below)
