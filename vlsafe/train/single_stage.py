"""Adaptation in a single stage, as Prismatic VLMs argue for: no stage for the projector alone comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlsafe.data.mix import Mixed, counts
from vlsafe.data.rows import Purpose, TrainingData
from vlsafe.registry import register
from vlsafe.settings import Fraction
from vlsafe.stage import StageContext
from vlsafe.train.adaptation import Trained, check_checkpoints, evenly
from vlsafe.train.optimization import Optimization
from vlsafe.train.phase import Phase


@register("adaptation", "single_stage")
@dataclass(frozen=True)
class SingleStage(Trained):
    """Projector and language model together from the first step (Karamcheti et al., arXiv 2402.07865, who find the projector's
    own stage unnecessary), on image-text pairs and visual instructions in one shuffled order. They leave the pairs out; here a
    share of the rows is pairs, so that the rows can be as many and of the same kinds as in two stages."""

    optimization: Optimization
    pairs: Fraction  # share of the projector's rows (image-text pairs) among the rows

    @property
    def cost_units(self) -> float:
        return float(self.optimization.steps)

    def check(self) -> None:
        super().check()
        check_checkpoints(self.checkpoints, self.optimization.steps - 1)
        self.check_phase("adaptation.optimization", self.optimization)

    def purposes(self) -> tuple[Purpose, ...]:
        asked: dict[Purpose, float] = {"projector": self.pairs, "instruct": 1.0 - self.pairs}
        return tuple(purpose for purpose, share in asked.items() if share)

    @property
    def last_step(self) -> int | None:
        return self.optimization.steps

    def snapshots(self) -> dict[int, int]:
        """Evenly spaced, without the beginning: the projector is untrained there."""
        steps = evenly(self.checkpoints + 1, self.optimization.steps)[1:]
        return dict(zip(steps, steps, strict=True))

    def phases(self, data: TrainingData, more_rows: int = 0, more: Sequence[Any] = ()) -> list[Phase]:
        from vlsafe.train.filter import Wanted

        setting = self.optimization
        n = counts({"projector": self.pairs, "instruct": 1.0 - self.pairs}, setting.rows)
        n["instruct"] += more_rows
        steps = -(-(sum(n.values()) + len(more)) // setting.batch_size)

        pairs = Wanted(data, "projector", n["projector"], self.seed, self.filter, self.most_removed)
        instructions = Wanted(data, "instruct", n["instruct"], self.seed, self.filter, self.most_removed)

        def sift(ctx: StageContext, tell: Callable[[str], None]) -> None:
            pairs.sift(ctx, tell)
            instructions.sift(ctx, tell)

        def rows() -> Sequence[Any]:
            return Mixed([pairs.read(), instructions.read(), more], self.seed)

        joint = replace(setting, steps=steps)
        return [
            Phase("single_stage", "sft", rows, joint, ("language_model", "projector"), self.seed, lora=self.lora, sift=sift)
        ]
