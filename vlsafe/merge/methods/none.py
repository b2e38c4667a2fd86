"""No merge: the cell ends with its unmerged model. The common settings are accepted, so that a sweep can cross them with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vlsafe.errors import ConfigError
from vlsafe.merge.base import MergeMethod
from vlsafe.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "none")
@dataclass(frozen=True, kw_only=True)
class NoMerge(MergeMethod):
    """Makes no stage; the settings it has change nothing."""

    merges: ClassVar[bool] = False
    min_models: ClassVar[int] = 0

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        raise ConfigError("merge=none merges nothing and makes no model; choose another merge method")
