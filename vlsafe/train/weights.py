"""Weights of a model that trains: written under the model's own names, and read back into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vlsafe.errors import CheckError


def trained_state(model: Any) -> dict[str, Any]:
    """The state dict without what is frozen."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def save_weights(state: Mapping[str, Any], file: Path) -> None:
    """A state dict under its own names, tied tensors once."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach().contiguous()
    save_file(kept, file, metadata={"format": "pt"})


def load_weights(model: Any, file: Path, needed: Mapping[str, Any] | None = None, as_saved: bool = False) -> None:
    """The inverse, into the model's dtypes, or with `as_saved` into those of the file.

    Raises `CheckError` where a tensor is left over, or one of the whole state dict (or of `needed`) missing."""
    saved = load_file(file)
    if as_saved:
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.data = tensor.data.to(saved.get(name, tensor).dtype)
    put_weights(model, saved, str(file), needed)


def put_weights(model: Any, saved: Mapping[str, Any], where: str, needed: Mapping[str, Any] | None = None) -> None:
    """Into the model, in its own dtype. Raises `CheckError` as `load_weights`."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in saved.items():
            if name not in state or state[name].shape != tensor.shape:
                raise CheckError(f"{where}: '{name}' does not fit {type(model).__name__}")
            state[name].copy_(tensor)
    filled = {state[name].data_ptr() for name in saved}
    needed = state if needed is None else needed
    missing = [name for name, tensor in needed.items() if tensor.data_ptr() not in filled]
    if missing:
        raise CheckError(f"{where}: {len(missing)} tensors of {type(model).__name__} are missing, such as {missing[0]}")
