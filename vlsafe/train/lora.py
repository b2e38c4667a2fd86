"""Low-rank adapters (Hu et al., arXiv 2106.09685) on the language model, by peft.

They stand in place of linear layers while a phase trains, under the same names (`….q_proj.lora_A.default.weight`), and are
merged into the weights when it ends, so what a stage publishes is a whole model. Each way in which peft's users got an adapter
that does nothing is an error here: a target that matched nothing, one that was not trained, one that merging lost.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.families import MODEL_INPUTS
from vlsafe.model.parts import part_of
from vlsafe.settings import Fraction, PositiveFloat, PositiveInt
from vlsafe.train.dtypes import computing

# How far apart logits may be, as a share of the largest: the order of summation differs, and 16 bits round the merged weights.
ROUNDING, ROUNDING_16_BITS = 2e-5, 5e-2


@dataclass(frozen=True)
class Lora:
    """Adapters W + alpha / rank · B A on linear layers of the language model, whose own weights stay frozen. Other trainable
    parts (the projector) are trained in full."""

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: Fraction = 0.0  # of what goes into an adapter, while training
    targets: tuple[str, ...] = ()  # last names of the layers (q_proj, …); empty: every linear layer of the blocks
    projector_learning_rate: PositiveFloat | None = None  # its peak; null: that of the adapters

    def check(self, where: str, trainable: Collection[str]) -> None:
        """Raises `ConfigError` where a setting could not act on training that changes the parts `trainable`."""
        if "language_model" not in trainable:
            raise ConfigError(
                f"{where}: adapters go into the language model, and only {', '.join(trainable)} is trained; set {where}=null"
            )
        if self.projector_learning_rate is not None and "projector" not in trainable:
            raise ConfigError(f"{where}.projector_learning_rate: the projector is not trained; set it to null")


def inject(model: Any, lora: Lora, seed: int, where: str) -> tuple[str, ...]:
    """Put fresh adapters into `model`; returns the names of the layers that got one.

    A is drawn from `seed` alone and B is zero, so the model computes what it did. Raises `CheckError` where a target has no
    layer.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and in_a_block(n)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    for target in lora.targets:
        if target not in kinds:
            raise CheckError(
                f"{where}: LoRA's target '{target}' is no linear layer in the language model's blocks; they have:"
                f" {', '.join(kinds)}"
            )
    wanted = tuple(n for n in linear if not lora.targets or n.rpartition(".")[2] in lora.targets)
    if not wanted:
        raise CheckError(f"{where}: {type(model).__name__} has no linear layers in its blocks, so LoRA would train nothing")
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(wanted), bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    found = adapted_layers(model)
    for layer in found.values():  # also where the weights that they adapt are of 16 bits
        layer.lora_A.float()
        layer.lora_B.float()
    if set(found) != set(wanted):
        odd = sorted(set(found) ^ set(wanted))
        raise CheckError(f"{where}: {len(found)} of {len(wanted)} layers got an adapter; {odd[0]} differs from what was asked")
    return wanted


def in_a_block(module: str) -> bool:
    return part_of(f"{module}.weight").startswith("language_model.layers.")


def adapted_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merge(
    model: Any, layers: Sequence[str], batch: Mapping[str, Any], where: str, dtypes: Mapping[str, Any] | None = None
) -> None:
    """Add the adapters to the weights of `layers` and put the plain layers back where they were. Weights are rounded to the
    dtype that they are held in, unless `dtypes` says that they are published in 32 bits.

    `batch` is a probe. Raises `CheckError` for an adapter that was not trained or isn't applied, and unless the merged model
    computes what the adapted one did.
    """
    import torch

    found = adapted_layers(model)
    if set(found) != set(layers):
        raise CheckError(f"{where}: {len(layers)} layers had an adapter and {len(found)} have one now")
    idle = [name for name in layers if not found[name].lora_B["default"].weight.any()]
    if idle:
        raise CheckError(f"{where}: {len(idle)} of {len(layers)} adapters were not trained: B is still zero in {idle[0]}")

    def logits() -> Any:
        inputs = {k: v.to(model.device) for k, v in batch.items() if k in MODEL_INPUTS}
        with torch.no_grad(), computing(model):
            return model(**inputs, use_cache=False).logits[inputs["attention_mask"] == 1].float()

    model.eval()
    adapted = logits()
    switch(found.values(), False)
    plain = logits()
    switch(found.values(), True)
    effect = (adapted - plain).abs().max()
    if effect == 0:
        raise CheckError(
            f"{where}: the adapters were trained, but the model computes the same without them: they aren't applied"
        )
    for name, layer in found.items():
        weight = layer.get_base_layer().weight
        if dtypes is not None and dtypes[f"{name}.weight"] == torch.float32:
            weight.data = weight.data.float()
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    apart = (logits() - adapted).abs().max()
    exact = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    rounding = ROUNDING if exact else ROUNDING_16_BITS
    if not apart <= max(rounding * adapted.abs().max(), 0.01 * effect):
        raise CheckError(
            f"{where}: merging lost the adapters: logits differ by {float(apart):.3g} from those before (the adapters' whole"
            f" effect was {float(effect):.3g})"
        )


def merged_copy(
    model: Any, layers: Sequence[str], batch: Mapping[str, Any], where: str, dtypes: Mapping[str, Any] | None = None
) -> Any:
    """A copy of the model with its adapters merged, as it is now; `model` trains on. Raises `CheckError` as `merge` does."""
    held = vars(model).pop("forward", None)  # bound to this very model
    try:
        twin = copy.deepcopy(model)
    finally:
        if held is not None:
            model.forward = held
    merge(twin, layers, batch, where, dtypes)
    return twin


def switch(layers: Any, on: bool) -> None:
    for layer in layers:
        layer.enable_adapters(on)
