"""The settings of an optimiser's run, the same for every method and phase."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from vlsafe.errors import ConfigError
from vlsafe.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, added

SaveDtype = Literal["parent", "fp32", "bf16"]  # of the weights that training publishes; parent: as those it starts from


@dataclass(frozen=True)
class Optimization:
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8) for `steps` steps of `batch_size` rows or pairs, over all processes."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat  # the peak, reached at the end of the warm-up
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_fraction: Fraction = 0.0  # the learning rate after the last step, as a share of the peak
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["fp32", "bf16"] = added("fp32")  # bf16: computed in 16 bits, weights and optimiser state kept in 32
    projector_learning_rate: PositiveFloat | None = added(None)  # the projector's peak, under the same schedule; null: as all
    max_length: PositiveInt | None = added(
        None
    )  # rows of more tokens, image tokens included, are dropped; null: the model's limit

    @property
    def rows(self) -> int:
        """How many rows (or pairs) the whole run sees."""
        return self.steps * self.batch_size

    def check(self, where: str, trainable: Collection[str], other: float | None = None) -> None:
        """Raises `ConfigError` where the projector's learning rate could not act, training the parts `trainable`. `other` is
        the one that `lora` sets."""
        if self.projector_learning_rate is None:
            return
        at = f"{where}.projector_learning_rate={self.projector_learning_rate:g}"
        if "projector" not in trainable:
            raise ConfigError(f"{at}: the projector is not trained; set it to null")
        if set(trainable) == {"projector"}:
            raise ConfigError(f"{at}: nothing but the projector is trained; set {where}.learning_rate, and this to null")
        if other is not None:
            raise ConfigError(f"{at}: lora.projector_learning_rate={other:g} is set too; set one of the two to null")

    def factor(self, step: int) -> float:
        """The learning rate of step `step` (0, 1, …) as a share of the peak.

        Linear from 1/(w+1) over the w steps of warm-up, then down to `final_fraction` (line or half cosine), which step
        `steps` would have.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.final_fraction + (1.0 - self.final_fraction) * left
