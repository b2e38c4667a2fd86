"""The parts of a model: which parameters belong to the language model, the projector and the vision tower."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.model.parts import part_of as model_part_of

PARTS = ("language_model", "projector", "vision_tower")


def part_of(name: str) -> str:
    """The part of the parameter `name`, without the layer; all of a plain language model is `language_model`."""
    return model_part_of(name).partition(".")[0]


def is_trained(name: str, trainable: Sequence[str], adapted: Collection[str] = ()) -> bool:
    """Whether the parameter `name` is declared to be trained: it belongs to the parts `trainable`. Where layers are `adapted`,
    of the language model only their adapters are, and once these are merged only their weights."""
    part = part_of(name)
    if part != "language_model" or not adapted:
        return part in trainable
    layer = re.sub(r"\.lora_[AB]\.\w+\.weight$|\.weight$", "", name)
    return part in trainable and layer in adapted


def freeze_all_but(model: Any, trainable: Sequence[str], where: str, adapted: Collection[str] = ()) -> dict[str, int]:
    """Let exactly the parts `trainable` be trained (`is_trained`); returns the number of their trained parameters by part.

    Raises `CheckError` for a part that the model doesn't have.
    """
    sizes: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, trainable, adapted))
        sizes[part_of(name)] += parameter.numel()
        trained[part_of(name)] += parameter.numel() * parameter.requires_grad
    for part in trainable:
        if not sizes[part]:
            has = ", ".join(p for p in PARTS if sizes[p])
            raise CheckError(f"{where}: trainable part '{part}' has no parameters in {type(model).__name__}; it has: {has}")
    return {part: trained[part] for part in PARTS if part in trainable}


def check_trainable(model: Any, optimizer: Any, trainable: Sequence[str], where: str, adapted: Collection[str] = ()) -> None:
    """Raises `CheckError` unless the optimiser holds every parameter that is declared (`is_trained`) and nothing else."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        declared = is_trained(name, trainable, adapted)
        if declared != (id(parameter) in held) or declared != parameter.requires_grad:
            state = "is not trained" if declared else "would be trained"
            raise CheckError(f"{where}: {name} {state}, but the trainable parts are {described(trainable, adapted)}")


def described(trainable: Sequence[str], adapted: Collection[str]) -> str:
    return ", ".join(f"{part} (its adapters)" if adapted and part == "language_model" else part for part in trainable)


def fingerprints(model: Any) -> dict[str, int]:
    """A checksum of every parameter's numbers, to see afterwards which ones changed."""
    return {name: bits(parameter) for name, parameter in model.named_parameters()}


def bits(tensor: Any) -> int:
    """A checksum of a tensor's numbers as 32 bits each, which those of 16 fit into."""
    import torch

    return zlib.crc32(tensor.detach().cpu().float().contiguous().view(-1).view(torch.uint8).numpy())


def check_changes(
    before: dict[str, int], model: Any, trainable: Sequence[str], where: str, adapted: Collection[str] = ()
) -> int:
    """How many trained tensors changed, now that adapters are merged.

    Raises `CheckError` if a frozen one did, a declared part or an adapted layer did not, or one holds values that are no
    numbers.
    """
    changed: Counter[str] = Counter()
    for name, value in fingerprints(model).items():
        if value != before[name]:
            if not is_trained(name, trainable, adapted):
                frozen = part_of(name) if part_of(name) not in trainable else "what has no adapter"
                raise CheckError(f"{where}: {name} changed, although {frozen} is frozen")
            changed[part_of(name)] += 1
        elif name.removesuffix(".weight") in adapted:
            raise CheckError(f"{where}: {name} is what it was, although its adapter was trained and merged")
    for name, parameter in model.named_parameters():
        if is_trained(name, trainable, adapted) and not parameter.isfinite().all():
            raise CheckError(f"{where}: {name} holds values that are no numbers: lower learning_rate or raise warmup_steps")
    for part in trainable:
        if not changed[part]:
            raise CheckError(
                f"{where}: nothing in '{part}' changed: its gradient was zero throughout (no pictures in the data?)"
            )
    return sum(changed.values())
