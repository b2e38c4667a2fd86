"""Results of a sweep as tidy rows: `results.csv`, one row for each (cell, role, benchmark, metric)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from vlsafe import registry
from vlsafe.errors import CheckError
from vlsafe.eval.base import Axis, Label
from vlsafe.eval.metrics import Metric, headline, metrics
from vlsafe.eval.rows import read_rows
from vlsafe.files import write_atomic

Status = Literal["done", "failed", "skipped", "missing"]
CHOICES = ("model", "adaptation", "safety_tune", "order", "merge", "seed")
COLUMNS = (
    "sweep", "cell", "role", *CHOICES, "step", "axis", "benchmark", "metric", "value", "n", "ci_low", "ci_high",
    "judge", "judge_version", "status", "key",
)  # fmt: skip


@dataclass(frozen=True)
class CellResult:
    """What one judge said of one role of a cell on one benchmark. `labels` is the judge artifact's folder, None unless done.

    `choices` holds model, adaptation, safety_tune, order, merge and seed as the cell asked for them; `swept` every other
    setting that the sweep varies, by its dotted name (`merge.density`). `final` marks the role that the cell comes to,
    `collapsed` a cell whose merge had one model on both sides, so that its result is the unmerged one's. `skipped`: an ancestor
    of the stage failed.
    """

    sweep: str
    cell: str
    role: str
    final: bool
    choices: Mapping[str, Any]
    status: Status
    axis: Axis
    benchmark: str
    judge: str
    judge_version: int
    key: str
    labels: Path | None = None
    swept: Mapping[str, Any] = field(default_factory=dict)
    collapsed: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)  # template, decoding, text_image, ...: what tables say beside
    execution: tuple[str, ...] = ()  # in what model or answers were made otherwise than most of the sweep: threads, ...
    step: int | None = None  # of a training checkpoint; None is the end
    last_step: int | None = None  # of the adaptation that made the role `adapted`: where its end lies among the steps


@dataclass(frozen=True)
class Scored:
    """A record and its metrics, the headline first; without values where it is not done."""

    result: CellResult
    metrics: tuple[Metric, ...]

    @property
    def headline(self) -> Metric:
        return self.metrics[0]

    def metric(self, name: str) -> Metric | None:
        return next((m for m in self.metrics if m.name == name), None)


def score(results: Iterable[CellResult]) -> list[Scored]:
    """Metrics of every record, in order; each labels file is read once. Raises `CheckError` for labels that can't be."""
    known: dict[tuple[Path, Axis, str], tuple[Metric, ...]] = {}
    scored = []
    for result in results:
        if result.status != "done" or result.labels is None:
            scored.append(Scored(result, (Metric(headline(result.axis), None, 0, None, None),)))
            continue
        at = (result.labels, result.axis, result.benchmark)
        if at not in known:
            labels = read_labels(result.labels)
            known[at] = (*metrics(result.axis, list(labels.values())), *own_metrics(result.benchmark, labels))
        scored.append(Scored(result, known[at]))
    return scored


def conditions(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a `generate` manifest's facts say of how its answers were made, for `CellResult.conditions`."""
    decoding = facts.get("decoding", {})
    said = {
        "template": facts.get("template_hash"),
        "decoding": f"{'greedy' if decoding.get('greedy') else 'sampled'}, {decoding.get('max_new_tokens')} new tokens"
        if decoding
        else None,
        "system prompt": decoding.get("system_prompt"),
        "text prompts": facts.get("text_image"),
        "pictures": "padded to a square" if facts.get("pad_to_square") else None,
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def own_metrics(benchmark: str, labels: Mapping[str, Label]) -> Sequence[Metric]:
    """Those that only this benchmark has; none for a name that isn't registered, as a user's own benchmark has it."""
    if benchmark not in registry.names("benchmark"):
        return ()
    found: Sequence[Metric] = registry.get("benchmark", benchmark).own_metrics(labels)  # type: ignore[attr-defined]
    return found


def read_labels(folder: Path) -> dict[str, Label]:
    """The label of each item, by its id, in order."""
    labels = {row.get("id"): row.get("label") for row in read_rows(folder / "labels.jsonl")}
    strange = [label for label in labels.values() if label not in get_args(Label)]
    if strange:
        raise CheckError(f"{folder}/labels.jsonl: {strange[0]!r} is no label; a label is one of {', '.join(get_args(Label))}")
    return labels


def rows(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The lines of results.csv: `COLUMNS`, then a column for each other swept setting, by name. None is an empty field."""
    swept = sorted({name for s in scored for name in s.result.swept} - set(COLUMNS))
    lines = []
    for s in scored:
        r = s.result
        for metric in s.metrics:
            lines.append(
                {"sweep": r.sweep, "cell": r.cell, "role": r.role}
                | {name: r.choices.get(name) for name in CHOICES}
                | {"step": r.step, "axis": r.axis, "benchmark": r.benchmark, "metric": metric.name, "value": metric.value}
                | {"n": metric.n if r.status == "done" else None, "ci_low": metric.low, "ci_high": metric.high}
                | {"judge": r.judge, "judge_version": r.judge_version, "status": r.status, "key": r.key}
                | {name: r.swept.get(name) for name in swept}
            )
    return lines


def write_csv(scored: Sequence[Scored], path: Path) -> None:
    """Written atomically. Shares have six decimals at most."""
    lines = rows(scored)
    names = list(lines[0]) if lines else list(COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: plain(value) for name, value in line.items()})
    write_atomic(path, text.getvalue())


def plain(value: Any) -> str:
    """A value as it stands in a field: floats to six significant decimals, None empty, lists as in YAML."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".") if 1e-4 <= abs(value) < 1e6 or value == 0 else f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(plain(v) for v in value)}]"
    return str(value)
