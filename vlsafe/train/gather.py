"""From what ZeRO has of a model, split over the ranks, to a plain model on the main one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlsafe.errors import CheckError
from vlsafe.train.lora import inject
from vlsafe.train.parts import bits, freeze_all_but
from vlsafe.train.weights import put_weights, trained_state

if TYPE_CHECKING:
    from vlsafe.train.phase import Phase


def unsharded(model: Any, again: Callable[[], Any], phase: Phase, before: dict[str, int], main: bool) -> Any:
    """A plain model with the weights that ZeRO has trained so far, its adapters in place; None on ranks but the main one.

    Raises `CheckError` where a trained weight is missing or has no place, or a frozen one is not what it was.
    """
    state = gathered(model, main)
    frozen = frozen_bits(model, main) if phase.optimization.precision == "fp32" else {}
    if not main:
        return None
    plain = again()
    adapted = inject(plain, phase.lora, phase.seed, phase.name) if phase.lora else ()
    freeze_all_but(plain, phase.trainable, phase.name, adapted)
    for name, value in frozen.items():
        was = before.get(name.replace(".base_layer.", "."))
        if value != was:
            raise CheckError(f"{phase.name}: {name} changed, although it is frozen")
    put_weights(plain, state, f"{phase.name}: what DeepSpeed trained", trained_state(plain))
    for name, parameter in plain.named_parameters():
        if name in state and parameter.dtype == state[name].dtype and bits(parameter) != bits(state[name]):
            raise CheckError(f"{phase.name}: {name} is not what DeepSpeed has of it")
    return plain


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


def frozen_bits(model: Any, main: bool) -> dict[str, int]:
    """Checksums of the frozen parameters as ZeRO holds them; empty on other ranks than the main one. A collective."""
    from deepspeed.runtime.zero import GatheredParameters

    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if main:
                    found[name] = bits(parameter)
    return found
