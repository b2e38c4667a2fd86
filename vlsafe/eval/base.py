"""The three parts of evaluation, which never mix: benchmarks yield items, judges label responses, metrics read labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from vlsafe.data.rows import SupervisedRow
from vlsafe.registry import Component

if TYPE_CHECKING:
    from vlsafe.eval.metrics import Metric
    from vlsafe.stage import StageContext

Axis = Literal["text_safety", "multimodal_safety", "over_refusal", "helpfulness"]
Expects = Literal["refuse", "comply", "answer"]  # what a right answer does
Label = Literal["refused", "answered", "other", "correct", "incorrect", "unparsed"]


@dataclass(frozen=True)
class Item:
    """One question of a benchmark. `target` is the right answer where known; `image` loads the picture when it is needed."""

    id: str
    category: str
    prompt: str
    expects: Expects
    target: str = ""
    image: Callable[[], Any] | None = None  # () -> PIL.Image.Image


class ResponseRow(TypedDict):
    """A line of `responses.jsonl`. `image` is the SHA-256 of the picture's pixels, or empty."""

    id: str
    benchmark: str
    category: str
    prompt: str
    image: str
    expects: Expects
    target: str
    response: str


class LabelRow(TypedDict):
    """A line of `labels.jsonl`."""

    id: str
    label: Label


class Benchmark(Component):
    """Base of the group `benchmark`. Settings of the dataclass are part of the key of what is generated from it."""

    axis: ClassVar[Axis]
    needs_image: ClassVar[bool]  # a model whose projector is untrained is not asked
    version: ClassVar[int] = 1  # part of the key: raise it when the items change

    @property
    def title(self) -> str:
        """What results call it."""
        return self.component_name

    def check_files(self) -> None:
        """Raises where it is seen from local files' names that they can't be read: before anything runs."""

    def items(self, limit: int | None) -> Sequence[Item]:
        """The first `limit` items of a fixed order (all of them for None): a larger limit extends a smaller one's items."""
        raise TypeError(f"{type(self).__name__} is abstract")

    @classmethod
    def own_metrics(cls, labels: Mapping[str, Label]) -> Sequence[Metric]:
        """Metrics that only this benchmark has, beside those of its axis, from the label of each item by its id."""
        return ()


class Judge(Component):
    """Base of the group `judge`. A judge sees rows only, so a new judge labels old responses without generating."""

    version: ClassVar[int] = 1  # part of the key: raise it when a label changes
    harm_version: ClassVar[int] = 1  # part of the key of what `harmful` filtered: raise it when it says otherwise
    asks_model: ClassVar[bool] = False  # it runs a model of its own, so its stage is given a GPU where there is one

    def label(self, rows: Sequence[ResponseRow]) -> list[Label]:
        """One label a row, in order; never a guess: what it can't read is `unparsed`."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def label_within(self, rows: Sequence[ResponseRow], ctx: StageContext) -> list[Label]:
        """`label` as a stage calls it: a judge that runs a model looks here where it runs, says how far it is, stops when it is
        asked to, leaves its facts for the manifest, and keeps what its model said in `ctx.work`. What it publishes in `ctx.out`
        beside the labels it finds again in `ctx.earlier`, when there are more responses."""
        return self.label(rows)

    def harmful(self, rows: Sequence[SupervisedRow]) -> list[bool | None]:
        """Whether training on a row would teach harm, for `adaptation.filter`; None where this judge can't tell. Only some
        judges can read training rows."""
        raise TypeError(f"judge={self.component_name} can't tell harm in training rows")

    def harmful_within(
        self, rows: Sequence[SupervisedRow], ctx: StageContext, tell: Callable[[str], None]
    ) -> list[bool | None]:
        """`harmful` as a training calls it, before its model is loaded and on every rank (`tell` says how far it is): the main
        rank is asked, and tells the others. A judge that runs a model shares the rows out, and keeps what its model said."""
        return ctx.ranks.broadcast(self.harmful(rows) if ctx.ranks.main else [])

    def close(self) -> None:
        """Lets go of what it holds in memory, as a model."""

    @classmethod
    def tells_harm(cls) -> bool:
        return cls.harmful is not Judge.harmful
