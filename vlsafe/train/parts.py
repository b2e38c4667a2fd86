"""The parts of a model: which parameters belong to the language model, the projector and the vision tower."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.model.parts import part_of as model_part_of

PARTS = ("language_model", "projector", "vision_tower")


def part_of(name: str) -> str:
    """The part of the parameter `name`, without the layer; all of a plain language model is `language_model`."""
    return model_part_of(name).partition(".")[0]


def freeze_all_but(model: Any, trainable: Sequence[str], where: str) -> dict[str, int]:
    """Let exactly the parts `trainable` be trained; returns the number of their parameters by part.

    Raises `CheckError` for a part that the model doesn't have.
    """
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        sizes[part] += parameter.numel()
        parameter.requires_grad_(part in trainable)
    for part in trainable:
        if not sizes[part]:
            has = ", ".join(p for p in PARTS if sizes[p])
            raise CheckError(f"{where}: trainable part '{part}' has no parameters in {type(model).__name__}; it has: {has}")
    return {part: sizes[part] for part in PARTS if part in trainable}


def check_trainable(model: Any, optimizer: Any, trainable: Sequence[str], where: str) -> None:
    """Raises `CheckError` unless the optimiser holds every parameter of the declared parts and nothing else."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        declared = part_of(name) in trainable
        if declared != (id(parameter) in held) or declared != parameter.requires_grad:
            state = "is not trained" if declared else "would be trained"
            raise CheckError(f"{where}: {name} {state}, but the trainable parts are {', '.join(trainable)}")


def fingerprints(model: Any) -> dict[str, int]:
    """A checksum of the bits of every parameter, to see afterwards which ones changed."""
    import torch

    return {
        name: zlib.crc32(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        for name, parameter in model.named_parameters()
    }


def check_changes(before: dict[str, int], model: Any, trainable: Sequence[str], where: str) -> int:
    """How many trained tensors changed.

    Raises `CheckError` if a frozen one did, a declared part did not, or one holds values that are no numbers.
    """
    changed: Counter[str] = Counter()
    for name, value in fingerprints(model).items():
        if value != before[name]:
            part = part_of(name)
            if part not in trainable:
                raise CheckError(f"{where}: {name} changed, although {part} is frozen")
            changed[part] += 1
    for name, parameter in model.named_parameters():
        if part_of(name) in trainable and not parameter.isfinite().all():
            raise CheckError(f"{where}: {name} holds values that are no numbers: lower learning_rate or raise warmup_steps")
    for part in trainable:
        if not changed[part]:
            raise CheckError(
                f"{where}: nothing in '{part}' changed: its gradient was zero throughout (no pictures in the data?)"
            )
    return sum(changed.values())
