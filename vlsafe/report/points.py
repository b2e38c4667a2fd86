"""What charts show of a sweep: its models, each once, brought together over seeds, and what they reach."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import Metric
from vlsafe.report.aggregate import SEEDS, seeds, shapes
from vlsafe.report.results import CHOICES, CellResult, Scored, plain
from vlsafe.report.text import printable

SAFETY: tuple[Axis, ...] = ("text_safety", "multimodal_safety")
ROLES = {"unaligned": 0, "base": 1, "adapted": 2, "tuned": 3, "merged": 4}
NOTHING = {"adaptation": "unadapted", "safety_tune": "untuned", "merge": "unmerged"}  # what the option `none` is called


class Estimate(NamedTuple):
    """A share in [0, 1] with its limits: a 95 % interval over items for one seed, mean ± standard deviation over several."""

    value: float
    low: float
    high: float
    seeds: int = 1

    def __str__(self) -> str:
        spread = f"± over {self.seeds} seeds" if self.seeds > 1 else "95 %"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] {spread}"


@dataclass(frozen=True)
class Model:
    """One model under one judge, with its records by benchmark."""

    result: CellResult  # the first of its records
    scores: Mapping[str, Scored]

    def estimate(self, benchmark: str) -> Estimate | None:
        found = self.scores.get(benchmark)
        return estimate_of(found.headline) if found else None


@dataclass(frozen=True)
class Point:
    """Models that differ in their seed only. `settings` are those that vary in the sweep and had a part in making them."""

    role: str
    final: bool
    settings: Mapping[str, str]
    models: tuple[Model, ...]
    collapsed: bool = False
    usual: Mapping[str, str] = field(default_factory=dict)  # what most cells have, and names leave out

    @property
    def label(self) -> str:
        """`sft + ties`, `untuned`, `base`."""
        said = {name: value for name, value in self.settings.items() if self.usual.get(name) != value}
        parts = [part_of(name, value) for name, value in said.items() if not (name == "merge" and value == "none")]
        if not self.final:
            parts = [self.role, *(p for p in parts if p not in NOTHING.values())]
        elif not parts:
            parts = [NOTHING["merge"] if "merge" in self.settings else self.role]
        return " + ".join(parts) + ("†" if self.collapsed else "")

    def seed_of(self, model: Model) -> str:
        """Empty where the model is one for all of the sweep's seeds."""
        drawn = dict.fromkeys(value for _, value in seeds(model.result))
        return printable(", ".join(drawn)) if self.final or len(self.models) > 1 else ""

    def seeds(self, estimate: Callable[[Model], Estimate | None]) -> list[Estimate]:
        """What each seed reaches, without those that reach nothing yet."""
        return [e for e in map(estimate, self.models) if e is not None]

    def mean(self, estimate: Callable[[Model], Estimate | None]) -> Estimate | None:
        found = self.seeds(estimate)
        return mean_over_seeds(found) if found else None


def mean_over_seeds(seeds: Sequence[Estimate]) -> Estimate:
    """The mean of single seeds ± their standard deviation, within [0, 1]; a single seed is left as it is."""
    if len(seeds) == 1:
        return seeds[0]
    value = statistics.fmean(e.value for e in seeds)
    spread = statistics.stdev(e.value for e in seeds)
    return Estimate(value, max(0.0, value - spread), min(1.0, value + spread), len(seeds))


def axes_mean(axes: Sequence[Axis], benchmarks: Mapping[str, Axis]) -> Callable[[Model], Estimate | None]:
    """The mean over axes of the mean over each axis' benchmarks; None for a model that lacks one of them.

    Limits by MOVER over the Wilson limits of each rate (Zou and Donner, 2008, Statistics in Medicine 27, p. 1693).
    """
    present = [axis for axis in axes if axis in benchmarks.values()]
    weights = {
        name: 1 / len(present) / sum(a == axis for a in benchmarks.values())
        for name, axis in benchmarks.items()
        if axis in present
    }

    def estimate(model: Model) -> Estimate | None:
        rates = [(weight, model.estimate(name)) for name, weight in weights.items()]
        known = [(weight, e) for weight, e in rates if e is not None]
        if not known or len(known) < len(rates):
            return None
        value = sum(w * e.value for w, e in known)
        below = math.sqrt(sum((w * (e.value - e.low)) ** 2 for w, e in known))
        above = math.sqrt(sum((w * (e.high - e.value)) ** 2 for w, e in known))
        return Estimate(value, max(0.0, value - below), min(1.0, value + above))

    return estimate


def benchmarks(scored: Iterable[Scored]) -> dict[str, Axis]:
    """Every benchmark and its axis, in the order of the axes."""
    found = {s.result.benchmark: s.result.axis for s in scored}
    rank = {axis: i for i, axis in enumerate(get_args(Axis))}
    return dict(sorted(found.items(), key=lambda item: rank[item[1]]))


def points(scored: Iterable[Scored]) -> list[Point]:
    """The finished models of a sweep: those on the way that are no cell's own (each once), then one point for each cell."""
    rows: dict[tuple[str, str, str], list[Scored]] = {}
    for s in scored:
        if s.result.step is None:
            rows.setdefault((s.result.cell, s.result.role, judge(s.result)), []).append(s)
    cells = [row for row in rows.values() if row[0].result.final]
    varied = varied_settings([row[0].result for row in cells])
    usual = usual_settings([row[0].result for row in cells], varied)
    own = {_identity(row) for row in cells}
    references = {
        _identity(row): row for row in rows.values() if not row[0].result.final and _identity(row) not in own
    }  # a model that cells share comes once, and as whichever of them; what shaped it is the same in all
    ordered = sorted(references.values(), key=lambda row: ROLES.get(row[0].result.role, 5))
    grouped: dict[tuple[Any, ...], list[list[Scored]]] = {}
    for row in [*ordered, *cells]:
        r = row[0].result
        settings = {n: v for n in varied if (v := value(r, n)) and (r.final or shapes(r.role, r.choices.get("order"), n))}
        alike = grouped.setdefault((r.role, r.final, r.collapsed, tuple(settings.items())), [])
        if _identity(row) not in map(_identity, alike):  # seeds that come to one model are one
            alike.append(row)
    return [
        Point(
            printable(role),
            final,
            dict(settings),
            tuple(Model(row[0].result, {s.result.benchmark: s for s in row}) for row in same),
            collapsed,
            usual,
        )
        for (role, final, collapsed, settings), same in grouped.items()
    ]


def judge(result: CellResult) -> str:
    return printable(f"{result.judge} v{result.judge_version}")


def value(result: CellResult, name: str) -> str:
    if name == "judge":
        return judge(result)
    return printable(plain(result.choices.get(name) if name in CHOICES else result.swept.get(name)))


def varied_settings(results: Sequence[CellResult]) -> list[str]:
    """Names of settings that differ among results, seeds left out."""
    names = dict.fromkeys([*CHOICES, *(n for r in results for n in r.swept), "judge"])
    return [n for n in names if n not in SEEDS and len({value(r, n) for r in results}) > 1]


def usual_settings(results: Sequence[CellResult], varied: Sequence[str]) -> dict[str, str]:
    """The values that two thirds of the cells have, tuning and merge aside: what a chart's names can do without."""
    found = {}
    for name in varied:
        top, count = Counter(value(r, name) for r in results).most_common(1)[0]
        if name not in ("safety_tune", "merge") and 3 * count >= 2 * len(results) and top:
            found[name] = top
    return found


def unsaid(points: Sequence[Point]) -> str:
    """A caption's sentence about what names leave out; empty where they leave out nothing."""
    usual = points[0].usual if points else {}
    shown = ", ".join(f"{printable(name.rpartition('.')[2])} {text}" for name, text in usual.items())
    return f" Names leave out what most cells have: {shown}." if shown else ""


def pareto(places: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the places that no other one beats (less is better in both), by their first coordinate."""
    best = math.inf
    front: list[int] = []
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        if places[i][1] < best or (front and places[i] == places[front[-1]]):
            front.append(i)
            best = places[i][1]
    return front


def part_of(name: str, value: str) -> str:
    """How a chart's name says one setting: `sft`, `untuned`, `planted 0.05`."""
    if value == "none" and name in NOTHING:
        return NOTHING[name]
    return value if name in CHOICES or name == "judge" else f"{printable(name.rpartition('.')[2])} {value}"


def _identity(row: Sequence[Scored]) -> frozenset[tuple[str, str]]:
    return frozenset((s.result.benchmark, s.result.key) for s in row)


def estimate_of(metric: Metric) -> Estimate | None:
    if metric.value is None or metric.low is None or metric.high is None:
        return None
    return Estimate(metric.value, metric.low, metric.high)
