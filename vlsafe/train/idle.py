"""What happens to parts of a model that a step, or one rank's share of it, doesn't use: those that see pictures.

In one process a part without a gradient is left alone by the optimiser. ZeRO keeps all weights of a group in one flat tensor,
and would move unused ones on by their momentum; so parts are groups of their own, and a step leaves out those it doesn't use.

Where one rank's share has pictures and another's has none, the second lacks the calls and gradients that the first waits for,
and all of them hang (ms-swift #9639). So it puts a picture through tower and projector, times zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from vlsafe.model.families import on_device
from vlsafe.train.parts import part_of

SEEING = ("projector", "vision_tower")


class SparingAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW that leaves the parts `idle` alone in a step, weights and moments. Its groups have a `part` each."""

    idle: tuple[str, ...] = ()
    param_groups: list[dict[str, Any]]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        groups = self.param_groups
        self.param_groups = [g for g in groups if g["part"] not in self.idle]
        try:
            return super().step(closure) if any(g["params"] for g in self.param_groups) else None
        finally:
            self.param_groups = groups


def groups_by_part(groups: Iterable[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    """Parameter groups with one part of the model each."""
    parts = {id(p): part_of(n) for n, p in model.named_parameters()}
    made = []
    for group in groups:
        for part in dict.fromkeys(parts[id(p)] for p in group["params"]):
            made.append({**group, "params": [p for p in group["params"] if parts[id(p)] == part], "part": part})
    return made


class AbsentPicture:
    """While `picture` is set, each forward pass puts it through tower and projector after the token embeddings, where the model
    has its pictures too (ZeRO-3 fetches weights in the order of use, which must be that of the other ranks), and adds nothing
    of it."""

    def __init__(self, model: Any) -> None:
        self.picture: Mapping[str, Any] | None = None
        self._model = model
        self._handle = model.get_input_embeddings().register_forward_hook(self._hook)

    def remove(self) -> None:
        self._handle.remove()

    def _hook(self, module: Any, inputs: Any, output: Any) -> Any:
        if self.picture is None:
            return output
        found = self._model.get_image_features(**on_device(self.picture, output.device, output.dtype)).pooler_output
        features = found if torch.is_tensor(found) else torch.cat(list(found))
        return output + 0.0 * features.sum().to(output.dtype)
