"""What notebooks and checks read in `outputs/sweeps/<name>/`: plan.json, cells.jsonl, results.csv, and links to artifacts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlsafe.errors import StoreError
from vlsafe.execute.survey import Survey
from vlsafe.files import write_atomic, write_json
from vlsafe.plan import CellPlan, Plan
from vlsafe.report.executions import differing_executions
from vlsafe.report.results import CellResult, Status, conditions
from vlsafe.store import Store
from vlsafe.sweep import Sweep

THERE = ("exists", "done", "found")


class Reason(NamedTuple):
    """Why a stage failed, and the path of its log."""

    error: str
    log: str


def write_plan(
    sweep: Sweep, plan: Plan, found: Survey, states: Mapping[str, str], reasons: Mapping[str, Reason] | None = None
) -> None:
    """`states` as the executor knows them: exists, pending, running, done, found, failed, skipped or interrupted. `reasons` of
    stages that failed are kept, so that a report that is made later can name them."""
    needed = plan.cells_of()
    names = [sweep.cell_name(c.cell) for c in plan.cells]
    stages = [
        {
            "stage": stage.kind, "key": stage.key, "label": stage.label, "version": stage.version,
            "parents": dict(stage.parents), "state": states[id], "estimate_seconds": found.seconds.get(id),
            "cells": [names[i] for i in needed[id]],
            **({"error": reasons[id].error, "log": reasons[id].log} if reasons and id in reasons else {}),
        }
        for id, stage in plan.stages.items()
    ]  # fmt: skip
    write_json(sweep.folder / "plan.json", {"sweep": sweep.name, "counts": plan.counts(), "stages": stages})


def cell_status(cell: CellPlan, states: Mapping[str, str]) -> str:
    """`done` when all of it is there, `failed` when some of it can't be, else `missing`."""
    own = {states[id] for id in cell.stages()}
    if own <= set(THERE):
        return "done"
    return "failed" if own & {"failed", "skipped"} else "missing"


def write_cells(sweep: Sweep, plan: Plan, states: Mapping[str, str], store: Store) -> None:
    """cells.jsonl, and relative links into the store: `cells/<cell>/<role>`, `cells/<cell>/responses/<role>-<benchmark>`.
    Links of cells that are gone, or named otherwise since the sweep grew, are removed."""
    lines = []
    for cell in plan.cells:
        name = sweep.cell_name(cell.cell)
        line: dict[str, Any] = {
            "cell": name,
            "choices": dict(cell.cell.choices),
            "order": cell.cell.order,
            "seed": cell.cell.seed,
            "swept": {axis: cell.cell.value(axis) for axis in sweep.extra_axes},
            "roles": {role: {"stage": id.split("/")[0], "key": id.split("/")[1]} for role, id in cell.roles.items()},
            "checkpoints": {
                str(step): {"stage": id.split("/")[0], "key": id.split("/")[1]} for step, id in cell.snapshots.items()
            },
            "final": cell.final,
            "collapsed": cell.collapsed,
            "status": cell_status(cell, states),
        }
        lines.append(json.dumps(line, ensure_ascii=False))
        folder = sweep.folder / "cells" / name
        wanted: set[Path] = set()
        models = {**cell.roles, **{f"adapted-step-{step}": id for step, id in cell.snapshots.items()}}
        for role, id in models.items():
            wanted.add(folder / role)
            link(folder / role, store.root / id, there=states[id] in THERE)
        for e in cell.evaluations:
            responses = plan.stages[e.stage].parents["responses"]
            asked = f"{e.role}-{e.benchmark}" if e.step is None else f"{e.role}-step-{e.step}-{e.benchmark}"
            wanted |= {folder / "responses" / asked, folder / "labels" / f"{asked}-{e.judge}"}
            link(folder / "responses" / asked, store.root / responses, there=states[responses] in THERE)
            link(folder / "labels" / f"{asked}-{e.judge}", store.root / e.stage, there=states[e.stage] in THERE)
        remove_links(folder, wanted)
    write_atomic(sweep.folder / "cells.jsonl", "".join(line + "\n" for line in lines))
    named = {sweep.cell_name(cell.cell) for cell in plan.cells}
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted((sweep.folder / "cells").iterdir()):
            if folder.name not in named and folder.is_dir() and not folder.is_symlink():
                remove_links(folder)


def remove_links(folder: Path, wanted: Collection[Path] = ()) -> None:
    """Symbolic links below `folder` but those `wanted`, then empty folders: a real file and the folders above it stay."""
    with contextlib.suppress(OSError):  # of rmdir, where something stays, or where another command was quicker
        for path in list(folder.iterdir()):
            if path.is_symlink():
                if path not in wanted:
                    path.unlink(missing_ok=True)
            elif path.is_dir():
                remove_links(path, wanted)
        folder.rmdir()


def link(path: Path, target: Path, there: bool) -> None:
    """A relative link that replaces an older one; none to what is not there."""
    wanted = os.path.relpath(target, path.parent)
    if path.is_symlink() and (not there or str(path.readlink()) != wanted):
        path.unlink()
    if there and not path.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(wanted)


def cell_results(sweep: Sweep, plan: Plan, states: Mapping[str, str], store: Store) -> list[CellResult]:
    """What results.csv has rows for, in the order of the cells."""
    results, said = [], dict[str, dict[str, str]]()
    differs = differing_executions(plan, [id for id in plan.stages if states[id] in THERE], store)
    for planned in plan.cells:
        cell = planned.cell
        choices = {g: cell.choices[g] for g in ("model", "adaptation", "safety_tune", "merge")}
        for e in planned.evaluations:
            stage = plan.stages[e.stage]
            status = row_status(states[e.stage])
            responses = stage.parents["responses"]
            model = planned.roles[e.role] if e.step is None else planned.snapshots[e.step]
            execution = [d for id in (*lineage(plan, model), responses) for d in differs.get(id, ())]
            if status == "done" and responses not in said:
                with contextlib.suppress(StoreError):  # labels without their responses are results all the same
                    said[responses] = conditions(store.manifest(*responses.split("/"))["facts"])
            results.append(
                CellResult(
                    sweep=sweep.name, cell=sweep.cell_name(cell), role=e.role, step=e.step,
                    last_step=cell.components["adaptation"].last_step if e.role == "adapted" else None,
                    final=e.role == planned.final and e.step is None,
                    choices={**choices, "order": cell.order, "seed": cell.seed}, status=status, axis=e.axis,
                    benchmark=e.benchmark, judge=e.judge, judge_version=e.judge_version, key=stage.key,
                    labels=store.read(stage.kind, stage.key) if status == "done" else None,
                    swept={axis: cell.value(axis) for axis in sweep.extra_axes}, collapsed=planned.collapsed,
                    conditions=said.get(responses, {}), execution=tuple(dict.fromkeys(execution)),
                )
            )  # fmt: skip
    return results


def row_status(state: str) -> Status:
    if state in THERE:
        return "done"
    return "failed" if state == "failed" else "skipped" if state == "skipped" else "missing"


def lineage(plan: Plan, id: str) -> Iterator[str]:
    """A stage and all that it was made from, parents after children, each once."""
    todo, seen = [id], set[str]()
    while todo:
        at = todo.pop(0)
        if at not in seen:
            seen.add(at)
            yield at
            todo.extend(plan.stages[at].parents.values())
