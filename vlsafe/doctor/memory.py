"""What training and answering need of memory, from formulas.

Bytes for each of N processes, with T trained and F frozen parameters (Rajbhandari et al., arXiv 1910.02054, section 3, and
PyTorch's AdamW):

    in 32 bits            weights 4 (T + F)                             gradients 4 T   AdamW 8 T
    in bf16               weights 4 T + f F, and 2 T while computing    gradients 4 T   AdamW 8 T
    in bf16 under ZeRO    weights 2 (T + F)                             gradients 2 T   AdamW and weights in 32 bits 12 T

What is frozen stays as it lies where that is bf16 (f = 2), and is held in 32 bits where it is not, fp16 included (f = 4, and
what autocast makes of it for a product comes and goes): see `vlsafe.train.dtypes.hold`.

ZeRO 1 splits the last over N processes, ZeRO 2 the gradients too, ZeRO 3 the weights too. Offload moves the last, and under
ZeRO 3 the weights, to the CPU's memory. Activations are Korthikanti et al.'s (arXiv 2205.05198, equation 2, whose attention
scores are never held whole here): 34 bytes for each token, layer and hidden unit, in 16 bits; with gradient checkpointing 2,
and 34 for one layer. To them come the logits of the answers, at most two times 4 bytes for each token and word. A batch of rows
of `max_length` tokens is the most there can be; rows are mostly shorter. Workspaces of libraries come on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlsafe.doctor.shapes import Size
from vlsafe.train.deepspeed import Zero
from vlsafe.train.lora import Lora

DEFAULT_LENGTH = 2048  # tokens of a row where no max_length is set
WIDE, SHORT = ("bf16", "bfloat16"), ("bf16", "bfloat16", "fp16", "float16")  # as settings and config.json call them
PRODUCT = 34  # bytes of a layer's activations, for each token and hidden unit


@dataclass(frozen=True)
class Training:
    """One phase, as far as memory goes. `micro` rows are taken at once by a process."""

    name: str
    trained: int
    frozen: int
    precision: str
    micro: int
    length: int
    stored: str | None = "bf16"  # the dtype that the weights lie in before; None: not known, and taken to be 32 bits

    @property
    def read(self) -> int:
        """Bytes of the model as a process reads it, before anything is split: in 32 bits where it is trained so."""
        each = 2 if self.precision == "bf16" and self.stored in SHORT else 4
        return each * (self.trained + self.frozen)


@dataclass(frozen=True)
class Memory:
    """Bytes: of each process on its GPU, `states` and at most `activations`; and in the CPU's memory of each node."""

    states: float
    activations: float
    host: float

    @property
    def gpu(self) -> float:
        return self.states + self.activations


def trainings(
    component: Any, group: str, size: Size, processes: int, micro: int | None, stored: str | None = "bf16"
) -> list[Training]:
    """The phases of a component of `adaptation` or `safety_tune`."""
    from vlsafe.train.split import optimizations

    found = []
    for name, setting in optimizations(component, group):
        only_projector = name.endswith(".projector")
        trained = size.projector if only_projector else size.projector + language(component, size)
        share = max(1, setting.batch_size // processes)
        rows = share if micro is None else min(micro, share)
        sides = 2 if hasattr(component, "beta") else 1  # a pair is two rows, an answer is compared with a mismatched one
        length = getattr(setting, "max_length", None) or DEFAULT_LENGTH
        found.append(Training(name, trained, size.parameters - trained, setting.precision, rows * sides, length, stored))
    return found


def language(component: Any, size: Size) -> int:
    lora: Lora | None = getattr(component, "lora", None)
    if lora is not None:
        return size.llm.adapters(lora)
    return size.llm.parameters if "language_model" in getattr(component, "trainable", ("language_model",)) else 0


def memory(training: Training, size: Size, zero: Zero | None, processes: int, checkpointing: bool) -> Memory:
    trained, frozen, half = training.trained, training.frozen, training.precision == "bf16"
    if zero is None:
        states = (
            4 * trained + (2 * trained if half else 0) + (2 if half and training.stored in WIDE else 4) * frozen + 12 * trained
        )
        return Memory(states, activations(training, size, checkpointing), 0)
    weights = (2 if half else 4) * (trained + frozen)
    gradients, rest = (2 * trained, 12 * trained) if half else (4 * trained, 8 * trained)
    split_weights = weights / processes if zero.stage == 3 else weights
    split_gradients = gradients / processes if zero.stage >= 2 else gradients
    away = (rest + (weights if zero.stage == 3 else 0)) if zero.offload else 0
    here = split_gradients + (0 if zero.offload else rest / processes)
    if not (zero.offload and zero.stage == 3):
        here += split_weights
    return Memory(here, activations(training, size, checkpointing), away)


def activations(training: Training, size: Size, checkpointing: bool) -> float:
    tokens, shape = training.micro * training.length, size.llm
    each = 1 if training.precision == "bf16" else 2
    layer = PRODUCT * tokens * shape.hidden * each
    held = 2 * each * tokens * shape.hidden * shape.layers + layer if checkpointing else shape.layers * layer
    return held + 2 * 4 * tokens * shape.vocabulary


def answering(size: Size, batch_size: int, new_tokens: int) -> float:
    """Weights in 16 bits, and keys and values of a batch of prompts as long as a picture and a page."""
    return 2 * size.parameters + batch_size * (DEFAULT_LENGTH + new_tokens) * size.llm.cache


def largest(needs: Sequence[tuple[str, Memory]]) -> tuple[str, Memory]:
    return max(needs, key=lambda need: need[1].gpu)
