"""What a component asks the engine to train: one run of one trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlsafe.stage import StageContext
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization

Method = Literal["sft", "dpo", "kto"]
Part = Literal["language_model", "projector", "vision_tower"]


@dataclass(frozen=True)
class Phase:
    """One run of one trainer. `rows` is called once, when the phase starts; more rows than steps need are left out, fewer are
    seen again, each pass in its own order."""

    name: str
    method: Method
    rows: Callable[[], Sequence[Any]]  # SupervisedRow for sft, PreferenceRow for dpo, LabelledRow for kto
    optimization: Optimization
    trainable: tuple[Part, ...]  # a plain language model has one part: language_model
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)  # of TRL's config: dpo {"beta": 0.1}
    lora: Lora | None = None  # of the language model only adapters are trained
    sift: Callable[[StageContext, Callable[[str], None]], None] | None = (
        None  # called before any model is loaded: a judge may be
    )
