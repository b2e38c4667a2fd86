"""Our records as runs: one for each cell, one for each training stage. The same records give the same runs and ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from vlsafe.cells import flatten
from vlsafe.errors import StoreError
from vlsafe.eval.rows import LABELS, RESPONSES, read_rows
from vlsafe.keys import digest
from vlsafe.plan import CellPlan, Plan, Stage
from vlsafe.report.outputs import THERE, cell_results, cell_status
from vlsafe.report.results import CHOICES, Scored, plain, rows, score
from vlsafe.report.text import printable
from vlsafe.stage import TRAINING_KINDS
from vlsafe.store import Store
from vlsafe.sweep import Sweep, identity
from vlsafe.tracking.base import Run, State, Table

MAX_TAG = 64  # W&B's limit
CURVE_AXIS = "adaptation_step"
LOGGED = {"lr": "learning_rate", "step": "phase_step"}  # names in the log that say too little on their own
RESPONSE_COLUMNS = ("role", "step", "benchmark", "judge", "id", "category", "prompt", "response", "label")


@dataclass(frozen=True)
class Records:
    """What a sweep's runs are made from. `states` are the stages', as the executor knows them."""

    sweep: Sweep
    plan: Plan
    states: Mapping[str, str]
    store: Store


def column(setting: str) -> str:
    """A setting's name as a flat column: W&B takes a dot for a level below (`merge.density` → `merge_density`)."""
    return re.sub(r"\W+", "_", setting)


def tag(sweep: str) -> str:
    return sweep if len(sweep) <= MAX_TAG else f"{sweep[: MAX_TAG - 9]}-{digest(sweep)[:8]}"


def cell_id(sweep: Sweep, planned: CellPlan) -> str:
    return digest({"sweep": sweep.name, "cell": identity(planned.cell)})


def training_id(stage: Stage) -> str:
    return f"{stage.kind}-{stage.key}"


def training_stages(plan: Plan) -> list[Stage]:
    """Without snapshots, which are on the way of one of these."""
    return [stage for stage in plan.stages.values() if stage.kind in TRAINING_KINDS and stage.step is None]


def cell_run(records: Records, planned: CellPlan, upload_text: bool) -> Run:
    """The cell's choices as columns, its metrics as summary, and the models on the way by their keys."""
    sweep, cell = records.sweep, planned.cell
    scored = score(cell_results(sweep, replace(records.plan, cells=[planned]), records.states, records.store))
    config = {column(name): flat(value) for name, value in cell.flat().items() if not name.endswith(".name")}
    config |= {"order": cell.order, "final_role": planned.final, "collapsed": planned.collapsed}
    config |= {column(axis): flat(cell.value(axis)) for axis in sweep.extra_axes}
    config |= {"sweep": sweep.name, "cell": sweep.cell_name(cell)}
    config |= {f"{role}_stage": id for role, id in planned.roles.items()}
    state = cell_state(planned, records.states)
    done = [s for s in scored if s.result.status == "done"]
    tables = {"results": results_table(scored)}
    if upload_text:
        tables["responses"] = responses_table(records, planned)
    curve = [] if state != "done" else during_adaptation(done)
    return Run(
        id=cell_id(sweep, planned), name=printable(sweep.cell_name(cell)), kind="cell",
        group=sweep.name, tags=(tag(sweep.name),), config=config, state=state,
        summary=summary_of(done, planned.final) | {"status": cell_status(planned, records.states)},
        history=curve, tables=tables, axes={f"{role}/*": CURVE_AXIS for role in planned.roles} if curve else {},
    )  # fmt: skip


def flat(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else plain(value)


def cell_state(planned: CellPlan, states: Mapping[str, str]) -> State:
    said = cell_status(planned, states)
    return "done" if said == "done" else "failed" if said == "failed" else "interrupted"


def summary_of(done: Iterable[Scored], final: str) -> dict[str, float]:
    """`adapted/asr/mw_direct`, the same under `final/` for the role that stands for the cell, and `final/mean/text_safety`: the
    mean of an axis' headlines over its benchmarks."""
    summary: dict[str, float] = {}
    axes: dict[str, list[float]] = {}
    for scored in done:
        r = scored.result
        if r.step is not None:
            continue
        for metric in scored.metrics:
            if metric.value is not None:
                summary[f"{r.role}/{metric.name}/{r.benchmark}"] = metric.value
                if r.role == final:
                    summary[f"final/{metric.name}/{r.benchmark}"] = metric.value
        if r.role == final and scored.headline.value is not None:
            axes.setdefault(r.axis, []).append(scored.headline.value)
    return summary | {f"final/mean/{axis}": fmean(values) for axis, values in axes.items()}


def during_adaptation(done: Iterable[Scored]) -> list[dict[str, Any]]:
    """One row for each checkpoint that was evaluated, by its step; the finished model's at the adaptation's last."""
    records = list(done)
    kept = {s.result.role for s in records if s.result.step is not None}
    curve: dict[int, dict[str, Any]] = {}
    for scored in records:
        r = scored.result
        step = r.step if r.step is not None else r.last_step
        for metric in scored.metrics if r.role in kept else ():
            if metric.value is not None and step is not None:
                curve.setdefault(step, {})[f"{r.role}/{metric.name}/{r.benchmark}"] = metric.value
    return [{CURVE_AXIS: step, **curve[step]} for step in sorted(curve)]


def results_table(scored: Sequence[Scored]) -> Table:
    """The cell's lines of results.csv."""
    lines = rows(scored)
    names = list(lines[0]) if lines else list(CHOICES)
    values = [[flat(line[name]) for name in names] for line in lines]
    return Table([column(name) for name in names], lambda: values, values)


def responses_table(records: Records, planned: CellPlan) -> Table:
    """What the model that stands for the cell answered, with labels. Models on the way are the final ones of other cells."""
    judged = [
        e for e in planned.evaluations if e.role == planned.final and e.step is None and records.states.get(e.stage) in THERE
    ]

    def read() -> list[list[Any]]:
        table = []
        for e in judged:
            asked = records.plan.stages[e.stage].parents["responses"]
            labels = {row["id"]: row["label"] for row in read_rows(records.store.root / e.stage / LABELS)}
            for row in read_rows(records.store.root / asked / RESPONSES):
                given = {**row, "role": e.role, "judge": e.judge, "label": labels.get(row["id"])}
                given["step"] = e.step
                table.append([sendable(given.get(name)) for name in RESPONSE_COLUMNS])
        return table

    return Table(RESPONSE_COLUMNS, read, [e.stage for e in judged])


def sendable(value: Any) -> Any:
    """Half a surrogate pair, which a model may well produce, can't be written as UTF-8."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def training_run(records: Records, stage: Stage, log: Sequence[Mapping[str, Any]], group: str, sweeps: Iterable[str]) -> Run:
    """One stage's training. It belongs to the sweep that showed it first, and is tagged with all of them."""
    settings = {k: v for part in (flatten(value, name) for name, value in stage.spec.items()) for k, v in part.items()}
    config = {column(name): flat(value) for name, value in settings.items() if not name.endswith(".name")}
    config |= {"stage": stage.kind, "key": stage.key, "label": printable(stage.label), "sweep": group}
    said = records.states.get(stage.id, "pending")
    state: State = "done" if said in THERE else "failed" if said == "failed" else "interrupted"
    summary: dict[str, Any] = {"status": state}
    if state == "done":
        summary |= training_summary(records.store, stage)
    return Run(
        id=training_id(stage), name=f"{stage.kind} {printable(stage.label)}", kind="training", group=group,
        tags=tuple(sorted(map(tag, sweeps))), config=config, summary=summary, state=state,
        history=[log_row(line) for line in log],
    )  # fmt: skip


def training_summary(store: Store, stage: Stage) -> dict[str, Any]:
    """What the manifest says of the whole: seconds, memory, threads, and each phase's numbers."""
    try:
        manifest = store.manifest(stage.kind, stage.key)
    except StoreError:
        return {}
    facts, execution = manifest.get("facts") or {}, manifest.get("execution") or {}
    summary = {"seconds": manifest.get("seconds"), "peak_memory_mb": facts.get("peak_memory_mb")}
    summary |= {name: execution.get(name) for name in ("threads", "device")}
    for phase, said in (facts.get("phases") or {}).items():
        for name in ("final_loss", "seconds", "samples_per_second", "steps"):
            summary[f"{phase}/{name}"] = said.get(name)
    return {name: value for name, value in summary.items() if isinstance(value, (int, float, str))}


def log_row(line: Mapping[str, Any]) -> dict[str, Any]:
    return {LOGGED.get(name, name): value for name, value in line.items()}


def training_log(store: Store, stage: Stage) -> list[dict[str, Any]]:
    """Every step of every phase so far: the artifact's log, or while it is made that of the try at hand."""
    done = store.path(stage.kind, stage.key) / "train_log.jsonl"
    if done.exists():
        return parse(done)
    tries = (store.root / ".scratch").glob(f"{stage.kind}-{stage.key}-*/work")
    logs = [sorted(work.glob("*/log.jsonl"), key=phase_number) for work in tries]
    longest: list[dict[str, Any]] = []
    for files in logs:  # a dead try's work may still stand beside that of the one that goes on from it
        lines = [{"phase": f.parent.name.partition("-")[2], **line} for f in files for line in parse(f)]
        longest = max(longest, lines, key=len)
    return longest


def phase_number(log: Path) -> tuple[int, str]:
    number = log.parent.name.partition("-")[0]
    return (int(number) if number.isdigit() else 0, log.parent.name)


def parse(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may be growing, or gone by now."""
    try:
        text = file.read_bytes()
    except OSError:
        return []
    lines = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
