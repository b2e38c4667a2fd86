"""The registered sources of training rows: group `data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlsafe.data.rows import PreferenceRow, SupervisedRow, TrainingData
from vlsafe.errors import ConfigError
from vlsafe.microworld.world import World, check_world
from vlsafe.registry import Component, register
from vlsafe.settings import Fraction, added

# Streams keep the rows of different purposes independent of each other.
_STREAMS = {"projector": 11, "instruct": 12, "safety": 13, "preference": 14, "helpful_preference": 15}


@register("data", "microworld")
@dataclass(frozen=True)
class MicroworldData(TrainingData):
    """The microworld's rows: made when asked for, about 0.1 ms each, the same for the same (world, purpose, seed, index)."""

    world: World = field(default_factory=World)
    borderline: Fraction = 1 / 6  # share of the `safety` rows that are borderline requests, answered
    planted: Fraction = added(0.0)  # share of the adaptation's instructions that are forbidden requests, answered
    replay: Fraction = added(0.0)  # share of the adaptation's instructions that are rows of the alignment's mixture

    def check(self) -> None:
        if self.planted + self.replay > 1:
            raise ConfigError(
                f"data.planted={self.planted:g} and data.replay={self.replay:g}: together more than all of the adaptation's"
                " instructions; lower one"
            )

    @property
    def replays_alignment(self) -> bool:
        return self.replay > 0

    def check_model(self, model: Component) -> None:
        check_world("data", self.world, model)

    def spec_for(self, stage: str, joint: bool = False) -> dict[str, Any]:
        spec = super().spec_for(stage, joint)
        unused = () if joint else ("borderline",) if stage == "adaptation" else ("planted", "replay")
        return {name: value for name, value in spec.items() if name not in unused}

    def supervised(self, purpose: Literal["projector", "instruct", "safety"], n: int, seed: int) -> Sequence[SupervisedRow]:
        from vlsafe.microworld import mixtures

        if purpose not in ("projector", "instruct", "safety"):
            return super().supervised(purpose, n, seed)
        makers = {
            "projector": mixtures.projector,
            "instruct": mixtures.adaptation(self.planted, self.replay),
            "safety": mixtures.safety(self.borderline),
        }
        return mixtures.LazyRows(makers[purpose], self.world, _STREAMS[purpose], n, seed)

    def helpful(self, n: int, seed: int) -> Sequence[SupervisedRow]:
        from vlsafe.microworld import mixtures

        return mixtures.LazyRows(mixtures.instruct, self.world, _STREAMS["instruct"], n, seed)

    def preferences(self, purpose: Literal["preference", "helpful_preference"], n: int, seed: int) -> Sequence[PreferenceRow]:
        from vlsafe.microworld import mixtures

        if purpose not in ("preference", "helpful_preference"):
            return super().preferences(purpose, n, seed)
        make = mixtures.preferences if purpose == "preference" else mixtures.helpful_preferences
        return mixtures.LazyRows(make, self.world, _STREAMS[purpose], n, seed)
