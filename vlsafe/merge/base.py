"""What every merge method shares: settings that say what is merged, and a pure function on tensors. Files are `stage.py`'s job.

A method is one file in `vlsafe/merge/methods/`, one YAML in `conf/merge/` and one test; the file is found by being there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from vlsafe.errors import ConfigError
from vlsafe.model.parts import check_scope
from vlsafe.registry import Component
from vlsafe.settings import Fraction, PositiveFloat, added, execution

if TYPE_CHECKING:
    from torch import Tensor

# (one tensor of each model, the base's where the method needs it, weights, canonical name) -> the merged tensor.
Merge = Callable[["Sequence[Tensor]", "Tensor | None", Sequence[float], str], "Tensor"]
# One tensor at a time: those of the models, and the base's where the method needs it.
Stream = Callable[[], Iterable[tuple["Sequence[Tensor]", "Tensor | None"]]]


@dataclass(frozen=True, kw_only=True)
class MergeMethod(Component):
    """Base of the group `merge`."""

    base: str = "base"  # the role that task vectors are measured from
    models: tuple[str, ...] | Literal["pair"] = "pair"  # the roles merged; `pair`: the cell's two models
    weights: tuple[float, ...] | None = None  # one for each model; null: equal
    scope: tuple[str, ...] | str = "language_model"  # the parts merged: parts.SELECTORS, `layers.4`, `layers.4-11`
    carrier: str = (
        "unmerged"  # the role that everything else is copied from; `unmerged`: the cell's last model before the merge
    )
    dtype: Literal["carrier", "float32", "bfloat16", "float16"] = "carrier"  # of what is written
    vocab: Literal["error", "carrier_rows"] = (
        "error"  # when vocabularies differ: stop, or merge common rows and keep the carrier's
    )
    max_shard_gb: PositiveFloat = execution(5.0)

    merges: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    min_models: ClassVar[int] = 2
    max_models: ClassVar[int | None] = None

    def merge(self, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], name: str) -> Tensor:
        """The merged tensor, of the same shape, in float32 (float64 where an input is); inputs are left as they are.

        Deterministic, and for equal weights independent of the order of `tensors`, unless the method draws at random for each;
        `weights` has one number for each of them, `name` is the tensor's canonical name.
        """
        raise TypeError(f"{type(self).__name__} is abstract")

    def prepare(self, stream: Stream, weights: Sequence[float]) -> Merge:
        """What to call for each tensor: `merge`, unless the method has to see the whole model first, by reading `stream()`."""
        return self.merge

    def resolved(self, count: int) -> Self:
        """With a weight for each of `count` models, however they were set: what keys, stages and reports see."""
        return replace(self, weights=self.weights or (1 / count,) * count)

    def check(self) -> None:
        """Raises `ConfigError` where settings contradict each other."""
        check_scope(self.scope, "merge.scope")
        if self.models != "pair" and len(set(self.models)) != len(self.models):
            raise ConfigError(
                f"merge.models={list(self.models)}: names a role twice; give it more weight in merge.weights instead"
            )
        self.check_count(2 if self.models == "pair" else len(self.models))
        if self.weights is not None:
            self.check_weights(self.weights)

    def check_count(self, count: int) -> None:
        if count < self.min_models or (self.max_models is not None and count > self.max_models):
            most = "" if self.max_models is None else f" and at most {self.max_models}"
            raise ConfigError(
                f"merge.models: merge={self.component_name} takes at least {self.min_models}{most} models, not {count}"
            )
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(
                f"merge.weights={list(self.weights)}: {len(self.weights)} weights for {count} models; set one for each"
            )

    def check_weights(self, weights: Sequence[float]) -> None:
        """Raises `ConfigError` for weights that the formula can't take; a method with other rules extends it."""
        if not any(weights):
            raise ConfigError(f"merge.weights={list(weights)}: all are zero; set at least one that isn't")


def refuse_negative(method: MergeMethod, weights: Sequence[float], reason: str) -> None:
    if min(weights) < 0:
        raise ConfigError(f"merge.weights={list(weights)}: merge={method.component_name} {reason}, so none may be negative")


@dataclass(frozen=True, kw_only=True)
class Interpolation(MergeMethod):
    """A method whose weights for two models may be set as one number: `t` stands for the weights (1 − t, t).

    `t` never leaves [0, 1]: between the two models. What lies beyond them is asked for by weights, where the method takes it.
    """

    t: Fraction | None = added(None)  # from the first model (0) to the second (1); null: `weights` decide

    def resolved(self, count: int) -> Self:
        if self.t is None:
            return super().resolved(count)
        # Rounded, so that t=0.9 and weights (0.1, 0.9) are one merge.
        return replace(self, t=None, weights=(round(1 - self.t, 15), self.t))

    def check_count(self, count: int) -> None:
        super().check_count(count)
        if self.t is None:
            return
        if self.weights is not None:
            raise ConfigError(f"merge.t={self.t:g}: merge.weights={list(self.weights)} are set too; set one of the two")
        if count != 2:
            raise ConfigError(f"merge.t={self.t:g}: lies between two models, not {count}; set merge.weights instead")
