"""The microworld's model with its smallest weights set to zero (magnitude pruning: Han et al., NIPS 2015, arXiv 1506.02626).

Does a compressed model lose its alignment sooner when it is given eyes? Later training may fill the zeros again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlsafe.model.components import Microworld
from vlsafe.registry import register
from vlsafe.settings import Fraction
from vlsafe.stage import StageContext


@register("model", "pruned")
@dataclass(frozen=True)
class Pruned(Microworld):
    """`share` of each matrix in the language model's layers is zero, the smallest magnitudes first."""

    share: Fraction = 0.3

    def build(self, ctx: StageContext) -> None:
        import torch

        from vlsafe.model.load import load_model, load_processor, save_model

        whole = ctx.work / "whole"
        super().build(replace(ctx, out=whole))  # shares `ctx.facts` and the checkpoints in `ctx.work`
        model = load_model(whole, "cpu")
        with torch.no_grad():
            for name, matrix in model.named_parameters():
                if "language_model.layers." in name and matrix.dim() == 2:
                    smallest = matrix.abs().flatten().argsort(stable=True)[: int(self.share * matrix.numel())]
                    matrix.view(-1)[smallest] = 0.0
        save_model(model, load_processor(whole), ctx.out)
