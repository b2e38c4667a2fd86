"""What seeds say together: records that are alike in everything but their seeds, as mean, spread and number of seeds.

A seed is a setting that only draws again: `seed`, and where a sweep varies one by itself, the seed of the model, of an
adaptation, a tuning or a merge. A world's seed (`model.world.seed`) is none: another world asks other questions. Seeds that
come to the same model, as all do for a `base` that is made once, are one model and count once.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.files import write_atomic
from vlsafe.report.results import CHOICES, CellResult, Scored, Status, plain

SEEDS = ("seed", "model.seed", "adaptation.seed", "safety_tune.seed", "merge.seed")
OVER_SEEDS = "results_over_seeds.csv"
WORST: tuple[Status, ...] = ("failed", "skipped", "missing")

Setting = tuple[str, str]  # a dotted name, and its value as it stands in a table


@dataclass(frozen=True)
class OverSeeds:
    """One metric over seeds. `sd` is the sample standard deviation of the seeds' values, None for fewer than two; `least` and
    `most` are their range; `n` is the number of items of all seeds together. Of `asked` seeds `seeds` have a value."""

    metric: str
    mean: float | None
    sd: float | None
    least: float | None
    most: float | None
    n: int
    seeds: int
    asked: int
    status: Status  # done where any seed is, else the worst

    @property
    def incomplete(self) -> str:
        """'2 of 3', or nothing where every seed has a value."""
        return "" if self.seeds == self.asked else f"{self.seeds} of {self.asked}"


def shapes(role: str, order: Any, name: str) -> bool:
    """Whether a setting (`merge`, `merge.density`, ...) has a part in how a role's model was made."""
    group = name.partition(".")[0]
    if group in ("safety_tune", "order"):
        return role in ("tuned", "merged") or (role == "adapted" and order == "before")
    if group == "data":
        return role not in ("unaligned", "base")
    if group == "adaptation":
        return role in ("adapted", "merged") or (role == "tuned" and order != "before")
    return role == "merged" if group == "merge" else True


def settings(result: CellResult) -> dict[str, str]:
    """All choices and swept settings of a record's cell, as shown; those that the cell lacks are left out."""
    values = {**{name: result.choices.get(name) for name in CHOICES}, **result.swept}
    return {name: plain(value) for name, value in values.items() if value is not None}


def making(result: CellResult) -> tuple[Setting, ...]:
    """The settings that shaped a record's model and its questions, without seeds."""
    return tuple(s for s in settings(result).items() if s[0] not in SEEDS and _shaped(result, s[0]))


def seeds(result: CellResult) -> tuple[Setting, ...]:
    """The seeds that a record's model was made with, as far as the sweep names them."""
    return tuple(s for s in settings(result).items() if s[0] in SEEDS and _shaped(result, s[0]))


def _shaped(result: CellResult, name: str) -> bool:
    return shapes(result.role, result.choices.get("order"), name)


def over_seeds(records: Sequence[Scored], metric: str | None = None) -> OverSeeds:
    """Of records that differ in their seeds only; `metric` is the headline unless named. Those of one key count once.

    Raises ValueError without a record.
    """
    if not records:
        raise ValueError("no record to aggregate")
    distinct = list({s.result.key: s for s in records}.values())
    name = metric or distinct[0].headline.name
    found = [m for s in distinct if (m := s.metric(name)) is not None]
    values = [m.value for m in found if m.value is not None]
    states = {s.result.status for s in distinct}
    return OverSeeds(
        metric=name,
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        least=min(values, default=None),
        most=max(values, default=None),
        n=sum(m.n for m in found),
        seeds=len(values),
        asked=len(distinct),
        status="done" if "done" in states else next(state for state in WORST if state in states),
    )


def groups(scored: Iterable[Scored]) -> list[list[Scored]]:
    """Records of one benchmark, judge and checkpoint whose models differ in their seeds only, each key once, in order.

    A cell's own result and the same model on the way of another cell are one.
    """
    found: dict[tuple[Any, ...], dict[str, Scored]] = {}
    for s in scored:
        r = s.result
        at = (r.role, making(r), r.step, r.benchmark, r.judge, r.judge_version)
        found.setdefault(at, {}).setdefault(r.key, s)
    return [list(group.values()) for group in found.values()]


def lines(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """A line for each role's model, benchmark and metric over its seeds; settings that had no part in the model are empty."""
    swept = sorted({name for s in scored for name in s.result.swept} - set(CHOICES) - set(SEEDS))
    made = []
    for group in groups(scored):
        first = group[0].result
        shown: Mapping[str, str] = dict(making(first))
        for name in dict.fromkeys(m.name for s in group for m in s.metrics):
            # What only some records have beside the headline (unparsed_rate) is no share of all: a mean of it would mislead.
            total = over_seeds(group, name)
            if name == "unparsed_rate":
                continue
            made.append(
                {"sweep": first.sweep, "role": first.role}
                | {choice: shown.get(choice) for choice in CHOICES if choice != "seed"}
                | {"step": first.step, "axis": first.axis, "benchmark": first.benchmark, "metric": name}
                | {"mean": total.mean, "sd": total.sd, "least": total.least, "most": total.most, "n": total.n}
                | {"seeds": total.seeds, "seeds_asked": total.asked, "judge": first.judge}
                | {"judge_version": first.judge_version, "status": total.status}
                | {name: shown.get(name) for name in swept}
            )
    return made


def several(scored: Iterable[Scored]) -> bool:
    """Whether any model of the sweep was made with more than one seed."""
    return any(len(group) > 1 for group in groups(scored))


def write_over_seeds(scored: Sequence[Scored], path: Path) -> None:
    """`results_over_seeds.csv` where there are several seeds; a file left from when there were is removed."""
    if not several(scored):
        path.unlink(missing_ok=True)
        return
    rows = lines(scored)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain(value) for name, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue())
