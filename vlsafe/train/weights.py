"""Weights of a model that trains: written under the model's own names, read back into it, gathered from all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def load_weights(model: Any, file: Path, needed: Mapping[str, Any] | None = None) -> None:
    """The inverse: raises `CheckError` where a tensor is left over, or one of the whole state dict (or of `needed`) missing."""
    put_weights(model, load_file(file), str(file), needed)


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


@contextmanager
def unsplit() -> Iterator[None]:
    """Within it a model is loaded whole: while a trainer with ZeRO-3 lives, transformers would split it over the ranks, and
    wait for those that load none."""
    from transformers.integrations import deepspeed

    config = deepspeed.deepspeed_config() and deepspeed._hf_deepspeed_config_weak_ref()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config:
            deepspeed.set_hf_deepspeed_config(config)


def gathered(model: Any, main: bool) -> dict[str, Any]:
    """What ZeRO has of the trained parameters of `model`, whole and on the CPU, under the model's own names; on ranks that are
    not the main one it is empty. A collective. With weights in 16 bits these are the optimiser's own of 32."""
    from deepspeed.utils import safe_get_full_fp32_param

    state = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        whole = safe_get_full_fp32_param(parameter)
        if whole is None:
            raise CheckError(f"DeepSpeed has no weights of {name}, which is trained")
        if main:
            state[name] = whole.detach().to("cpu", copy=True)
    return state


def frozen_bits(model: Any, main: bool, checksum: Any) -> dict[str, int]:
    """Checksums of the frozen parameters as ZeRO holds them; empty on other ranks than the main one. A collective."""
    from deepspeed.runtime.zero import GatheredParameters

    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if main:
                    found[name] = checksum(parameter)
    return found
