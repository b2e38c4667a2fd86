"""In which dtypes weights are held while a model trains, and in which they are published.

What is trained is held in 32 bits, whatever the parent is stored in: in 16 an update is mostly smaller than the gap to the next
number, and is lost. What is frozen stays in bf16 where the phase computes in bf16, so that a 7B model trained by adapters needs
14 GB for its weights; otherwise it is held in 32 bits too, which changes no number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from vlsafe.model.load import in_dtype
from vlsafe.train.optimization import SaveDtype
from vlsafe.train.parts import part_of

if TYPE_CHECKING:
    from vlsafe.train.phase import Phase


def published(parent: Mapping[str, Any], save: SaveDtype) -> dict[str, Any]:
    """The dtype that each tensor of a state dict is published in, from that which the parent has it in."""
    import torch

    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(save)
    return {name: wanted if wanted and dtype.is_floating_point else dtype for name, dtype in parent.items()}


def hold(model: Any, phase: Phase) -> None:
    """Bring each parameter into the dtype that `phase` holds it in, in place. No number changes: it is never a narrower one."""
    import torch

    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained = part in phase.trainable and not (phase.lora and part == "language_model")
        if trained or phase.optimization.precision == "fp32" or parameter.dtype != torch.bfloat16:
            parameter.data = parameter.data.float()


def cast(model: Any, dtypes: Mapping[str, Any]) -> None:
    """Bring the state dict into `dtypes`, in place. Raises `CheckError` where a number is too large for its dtype."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.dtype != dtypes[name]:
            tensor.data = in_dtype(tensor.data, dtypes[name], name)


def computing(model: Any, precision: str = "fp32") -> AbstractContextManager[Any]:
    """Within it the model computes in bf16 where `precision` says so, or where its parameters are of several dtypes."""
    import torch

    if precision == "bf16" or len({p.dtype for p in model.parameters()}) > 1:
        made: AbstractContextManager[Any] = torch.autocast(model.device.type, torch.bfloat16)
        return made
    return nullcontext()


def named(dtypes: Iterable[Any]) -> str:
    """`bfloat16`, or several from the most frequent on: `bfloat16, float32`."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype, _ in Counter(dtypes).most_common())


def held(model: Any, precision: str, zero: bool) -> dict[str, str]:
    """For the manifest: dtypes of what is trained and of what is frozen, and what is computed in."""
    sides = {True: "trained", False: "frozen"}
    told = {
        sides[side]: named(p.dtype for p in model.parameters() if p.requires_grad == side)
        for side in sides
        if any(p.requires_grad == side for p in model.parameters())
    }
    told["computed"] = "bfloat16" if precision == "bf16" else "float32"
    if zero and precision == "bf16":  # DeepSpeed's weights of 32 bits are made from its own of 16
        told |= dict.fromkeys(told, "bfloat16") | {"trained": "float32, begun from bfloat16"}
    return told
