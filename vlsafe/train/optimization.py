"""The settings of an optimiser's run, the same for every method and phase."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vlsafe.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, added


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

    @property
    def rows(self) -> int:
        """How many rows (or pairs) the whole run sees."""
        return self.steps * self.batch_size

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
