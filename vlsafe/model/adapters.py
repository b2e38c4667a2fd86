"""Released LoRA adapters (a folder of peft's, in safetensors), added to the weights of the model that they were trained on."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsafe.errors import CheckError
from vlsafe.model.parts import canonical_name
from vlsafe.model.weights import Checkpoint, open_file

if TYPE_CHECKING:
    from torch import Tensor

    from vlsafe.model.released import Lvlm

ADAPTER, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# What peft's adapters may be besides W + scale · B A, which is all that is understood here.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None,),
}


def add_adapters(model: Lvlm, folder: Path, where: str) -> int:
    """Let each adapted tensor of `model` be read with its adapter added; returns how many there are.

    Raises `CheckError` for adapters that are of another kind, halved, of another shape, empty, or belong to nothing.
    """
    config = json.loads((folder / ADAPTER).read_text("utf-8"))
    for name, allowed in _MUST_BE.items():
        if name in config and config[name] not in allowed:
            raise CheckError(
                f"{where}: {ADAPTER} has {name}={config[name]}, which is not understood here: load model and adapters with "
                "peft, call merge_and_unload(), save the result, and set safety_tune.source.folder to it"
            )
    refuse_beside(folder, where)
    if not (folder / WEIGHTS).is_file():
        here = (folder / PICKLED).is_file()
        raise CheckError(
            f"{where}: no {WEIGHTS} there; adapters are read from safetensors only: save them again with peft, or, where you"
            f" trust who made them: {'' if here else 'hf download ID --local-dir FOLDER, '}python -m vlsafe.model.convert"
            f" {folder if here else 'FOLDER'} NEW_FOLDER, and set safety_tune.source.folder to that"
        )
    checkpoint = open_file(folder / WEIGHTS)
    layers: dict[str, dict[str, str]] = {}
    for stored in checkpoint.tensors:
        found = _NAME.fullmatch(stored)
        if found is None:
            raise CheckError(f"{where}: '{stored}' is no LoRA adapter of a layer")
        layers.setdefault(canonical_name(f"{found['layer']}.weight"), {})[found["side"]] = stored
    if not layers:
        raise CheckError(f"{where}: {WEIGHTS} is empty: its adapters were lost when they were saved")
    root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    for canonical, sides in layers.items():
        if canonical not in model.places or len(sides) < 2:
            raise CheckError(f"{where}: '{next(iter(sides.values()))}' has no counterpart: {canonical} is not adapted whole")
        a, b = (checkpoint.tensors[sides[side]].shape for side in "AB")
        if (b[0], a[1]) != model.places[canonical].info.shape or a[0] != b[1]:
            raise CheckError(f"{where}: the adapter of {canonical} is {b} · {a} for {model.places[canonical].info.shape}")
        change = partial(_added, checkpoint, sides, scale, where)
        model.places[canonical] = model.places[canonical]._replace(change=change)
    return len(layers)


def refuse_beside(folder: Path, where: str) -> None:
    """Raises `CheckError` where adapters are not all that was trained."""
    beside = next(iter(sorted(folder.glob("non_lora_trainables.*"))), None)
    if beside is not None:
        raise CheckError(
            f"{where}: {beside.name} holds what was trained beside the adapters (LLaVA's projector), which is not read: merge"
            " them with LLaVA's scripts/merge_lora_weights.py, and set safety_tune.source.folder to the result"
        )


def _added(checkpoint: Checkpoint, sides: dict[str, str], scale: float, where: str, weight: Tensor) -> Tensor:
    delta = scale * (checkpoint.read(sides["B"]).float() @ checkpoint.read(sides["A"]).float())
    if not delta.any():
        raise CheckError(f"{where}: the adapter of '{sides['B']}' is zero: it was not trained, or lost when it was saved")
    return (weight.float() + delta).to(weight.dtype)
