"""Supervised safety tuning on text alone: how much of the safety that text teaches holds for pictures."""

from __future__ import annotations

from dataclasses import dataclass

from vlsafe.data.rows import TrainingData
from vlsafe.errors import ConfigError
from vlsafe.registry import register
from vlsafe.stage import StageContext
from vlsafe.train.adaptation import Adaptation
from vlsafe.train.tuning import Supervised, TrainableParts


@register("safety_tune", "text_sft")
@dataclass(frozen=True)
class TextSupervised(Supervised):
    """`sft` over the rows that have no picture, whatever the model can see. Only the language model learns."""

    trainable: TrainableParts = ("language_model",)

    def check(self) -> None:
        if self.order == "joint":
            raise ConfigError(
                "safety_tune.order=joint: text_sft is a stage of its own; set after or before, or safety_tune=sft"
            )
        if self.trainable != ("language_model",):
            raise ConfigError(f"safety_tune.trainable={list(self.trainable)}: text teaches [language_model] alone; set that")
        super().check()

    def check_text_only(self) -> None:
        """Any model can be tuned so."""

    def run(
        self, data: TrainingData, ctx: StageContext, *, text_only: bool = False, adaptation: Adaptation | None = None
    ) -> None:
        super().run(data, ctx, text_only=True, adaptation=adaptation)
