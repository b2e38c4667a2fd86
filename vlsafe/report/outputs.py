"""What notebooks and checks read in `outputs/sweeps/<name>/`: plan.json, cells.jsonl, results.csv, and links to artifacts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsafe.execute.survey import Survey
from vlsafe.files import write_atomic, write_json
from vlsafe.plan import CellPlan, Plan
from vlsafe.report.results import CellResult, Status, conditions
from vlsafe.store import Store
from vlsafe.sweep import Sweep

THERE = ("exists", "done", "found")


def write_plan(sweep: Sweep, plan: Plan, found: Survey, states: Mapping[str, str]) -> None:
    """`states` as the executor knows them: exists, pending, running, done, found, failed, skipped or interrupted."""
    needed = plan.cells_of()
    names = [sweep.cell_name(c.cell) for c in plan.cells]
    stages = [
        {
            "stage": stage.kind, "key": stage.key, "label": stage.label, "version": stage.version,
            "parents": dict(stage.parents), "state": states[id], "estimate_seconds": found.seconds.get(id),
            "cells": [names[i] for i in needed[id]],
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
    """cells.jsonl, and relative links into the store: `cells/<cell>/<role>`, `cells/<cell>/responses/<role>-<benchmark>`."""
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
            "final": cell.final,
            "collapsed": cell.collapsed,
            "status": cell_status(cell, states),
        }
        lines.append(json.dumps(line, ensure_ascii=False))
        folder = sweep.folder / "cells" / name
        for role, id in cell.roles.items():
            link(folder / role, store.root / id, there=states[id] in THERE)
        for e in cell.evaluations:
            responses = plan.stages[e.stage].parents["responses"]
            link(folder / "responses" / f"{e.role}-{e.benchmark}", store.root / responses, there=states[responses] in THERE)
            link(folder / "labels" / f"{e.role}-{e.benchmark}-{e.judge}", store.root / e.stage, there=states[e.stage] in THERE)
    write_atomic(sweep.folder / "cells.jsonl", "".join(line + "\n" for line in lines))


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
    for planned in plan.cells:
        cell = planned.cell
        choices = {g: cell.choices[g] for g in ("model", "adaptation", "safety_tune", "merge")}
        for e in planned.evaluations:
            stage = plan.stages[e.stage]
            status = row_status(states[e.stage])
            responses = stage.parents["responses"]
            if status == "done" and responses not in said:
                said[responses] = conditions(store.manifest(*responses.split("/"))["facts"])
            results.append(
                CellResult(
                    sweep=sweep.name, cell=sweep.cell_name(cell), role=e.role, final=e.role == planned.final,
                    choices={**choices, "order": cell.order, "seed": cell.seed}, status=status, axis=e.axis,
                    benchmark=e.benchmark, judge=e.judge, judge_version=e.judge_version, key=stage.key,
                    labels=store.read(stage.kind, stage.key) if status == "done" else None,
                    swept={axis: cell.value(axis) for axis in sweep.extra_axes}, collapsed=planned.collapsed,
                    conditions=said.get(responses, {}),
                )
            )  # fmt: skip
    return results


def row_status(state: str) -> Status:
    if state in THERE:
        return "done"
    return "failed" if state == "failed" else "skipped" if state == "skipped" else "missing"
