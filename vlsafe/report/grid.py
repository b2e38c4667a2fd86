"""A table as data: heads, columns by axis, and lines of entries. `layout.py` arranges it, the terminal, Markdown, LaTeX and
the report draw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import BETTER, Direction, Metric
from vlsafe.report.aggregate import OverSeeds
from vlsafe.report.results import Status

AXIS_TITLES: Mapping[Axis, str] = {
    "text_safety": "text safety",
    "multimodal_safety": "multimodal safety",
    "over_refusal": "over-refusal",
    "helpfulness": "helpfulness",
}
METRIC_TITLES = {"asr": "ASR", "refusal_rate": "refusal", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Column:
    axis: Axis
    benchmark: str
    metric: str
    n: tuple[int, int] | None  # least and most of its entries; None where nothing was counted

    @property
    def better(self) -> Direction:
        return BETTER[self.metric]

    @property
    def goal(self) -> str:
        """The metric and its direction: 'ASR ↓'."""
        return f"{METRIC_TITLES[self.metric]} {'↓' if self.better == 'lower' else '↑'}"

    @property
    def count(self) -> str:
        """'n=250', or the least and the most; empty where nothing was counted."""
        return f"n={span(*self.n)}" if self.n else ""


def span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"


@dataclass(frozen=True)
class Entry:
    """`flag` is '?' where rows could not be read, '°' where many answers neither refuse nor answer. With `spread` it is a mean
    over seeds: `metric` has the mean as its value, the items of all seeds as n, and no interval."""

    metric: Metric
    status: Status
    flag: str = ""
    best: bool = False
    spread: OverSeeds | None = None


@dataclass(frozen=True)
class Line:
    labels: tuple[str, ...]  # one for each of `Grid.heads`
    entries: tuple[Entry | None, ...]  # one for each of `Grid.columns`; None where the model is not asked
    is_cell: bool
    kind: Literal["row", "mean", "seed"] = "row"  # a mean line is followed by those of its seeds


@dataclass(frozen=True)
class Grid:
    sweep: str
    cells: int  # points of the grid; under several judges each has several lines
    constants: tuple[str, ...]  # the settings that all cells share, as 'name value'
    judges: tuple[str, ...]
    conditions: tuple[str, ...]  # under which the answers were made, as 'name value'; all of a name's values where they differ
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]  # legends that this table needs
    execution: tuple[str, ...] = ()  # what '‡' stands for: a legend, then each difference; empty where no row has the mark

    @property
    def over_seeds(self) -> str:
        """What the means are, and of how many items; empty where no line is a mean over seeds."""
        means = [line for line in self.lines if line.kind == "mean"]
        if not means:
            return ""
        counts = sorted(e.metric.n for line in means for e in line.entries if e and e.metric.n)
        items = f", n = {span(counts[0], counts[-1])} together" if counts else ""
        return f"means ± standard deviation over seeds{items}"
