"""Safety tuning on preference pairs: DPO on both answers, KTO on each of them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.mix import Mixed, Unpaired, counts
from vlsafe.data.rows import Purpose, TrainingData
from vlsafe.errors import ConfigError
from vlsafe.registry import register
from vlsafe.settings import PositiveFloat
from vlsafe.stage import StageContext
from vlsafe.train.adaptation import Adaptation
from vlsafe.train.tuning import Trained, asked, draw


@dataclass(frozen=True, kw_only=True)
class FromPairs(Trained):
    """What tuning on preference pairs shares, whatever its loss. `helpful` is the share of pairs that prefer an answer to a
    needless refusal."""

    def check_joint(self) -> None:
        raise ConfigError(
            "safety_tune.order=joint: preference pairs can't be mixed with the adaptation's instructions;"
            " set safety_tune=sft, or safety_tune.order=after or before"
        )

    def check(self) -> None:
        super().check()
        if self.lora is not None and self.lora.dropout:
            raise ConfigError(
                f"safety_tune.lora.dropout={self.lora.dropout:g}: training on preferences compares the model with a reference,"
                " so it runs without dropout; set 0"
            )

    def purposes(self) -> tuple[Purpose, ...]:
        return asked({"helpful_preference": self.helpful, "preference": 1.0 - self.helpful})

    def refuse_joint(self, adaptation: Adaptation | None) -> None:
        if adaptation is not None:
            self.check()
            name = self.component_name
            raise ConfigError(f"safety_tune={name} can't be trained jointly with an adaptation: set safety_tune.order=after")

    def pairs(self, data: TrainingData, n: int, text_only: bool) -> Sequence[Any]:
        """`n` pairs, of which the share `helpful` prefers an answer to a needless refusal."""
        parts = counts({"helpful": self.helpful, "safety": 1.0 - self.helpful}, n)
        source = data.preferences
        helpful = draw(lambda n: source("helpful_preference", n, self.seed), parts["helpful"], text_only, "helpful_preference")
        safety = draw(lambda n: source("preference", n, self.seed), parts["safety"], text_only, "preference")
        return Mixed([helpful, safety], self.seed)


@register("safety_tune", "dpo")
@dataclass(frozen=True)
class Preference(FromPairs):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7), refusals preferred to harmful answers, as
    SPA-VL does. The reference is the model that tuning starts from."""

    beta: PositiveFloat

    def run(
        self, data: TrainingData, ctx: StageContext, *, text_only: bool = False, adaptation: Adaptation | None = None
    ) -> None:
        self.refuse_joint(adaptation)

        def rows() -> Sequence[Any]:
            return self.pairs(data, self.optimization.rows, text_only)

        self.train("dpo", rows, ctx, text_only, {"beta": self.beta})


@register("safety_tune", "kto")
@dataclass(frozen=True)
class KahnemanTversky(FromPairs):
    """Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306, eq. 7) of single answers, each desirable or not.

    Both sides of each of `data`'s pairs are used: the chosen answer is desirable, the rejected one undesirable. Half of each
    batch is desirable and half undesirable. The reference is the model that tuning starts from.
    """

    whole_batches: ClassVar[bool] = True  # a rank's share of a batch can't be accumulated from parts

    beta: PositiveFloat
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0

    def check(self) -> None:
        super().check()
        size = self.optimization.batch_size
        if size % 2 or size < 4:
            raise ConfigError(
                f"safety_tune.optimization.batch_size={size}: half of a batch is desirable and half undesirable, each of two"
                " answers at least; set an even number from 4 on"
            )

    def run(
        self, data: TrainingData, ctx: StageContext, *, text_only: bool = False, adaptation: Adaptation | None = None
    ) -> None:
        self.refuse_joint(adaptation)

        def rows() -> Sequence[Any]:
            return Unpaired(self.pairs(data, self.optimization.rows // 2, text_only))

        options = {name: getattr(self, name) for name in ("beta", "desirable_weight", "undesirable_weight")}
        self.train("kto", rows, ctx, text_only, options)
