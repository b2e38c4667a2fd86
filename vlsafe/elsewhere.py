"""Hydra's own launchers (`hydra/launcher=submitit_slurm`, `submitit_local`): each cell is one job, which runs its own stages.

Jobs of one sweep share its store: a stage that two cells need is made by one, and the other waits for its lease. What became
of a job's stages goes into a file of its own, since such a launcher forgets all jobs when one is lost.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vlsafe.cells import Cell
from vlsafe.errors import ConfigError, VlsafeError
from vlsafe.execute.executor import Executor
from vlsafe.execute.progress import Outcome, Progress
from vlsafe.execute.resources import deepspeed_settings
from vlsafe.execute.survey import Survey, survey
from vlsafe.files import read_json, write_json
from vlsafe.keys import digest
from vlsafe.plan import Plan, make_plan
from vlsafe.report.outputs import THERE
from vlsafe.settings import build
from vlsafe.store import Store
from vlsafe.sweep import Sweep, identity, load_sweep

HandOut = Callable[[Sequence[int], str], None]  # runs these cells of the grid under the sweep's name
BETTER = ("pending", "interrupted", "skipped", "failed", "found", "done")  # of what two jobs say of one stage


def folder_of(sweep: Path, cell: Cell) -> Path:
    """A job's tasks, events and logs: process ids of two machines may be the same."""
    return sweep / "work" / "cells" / digest(identity(cell))


def run_elsewhere(
    sweep: Sweep, cells: Sequence[Cell], plan: Plan, found: Survey, store: Store, hand_out: HandOut, console: Console
) -> Outcome:
    """Hands out the cells that have something to run, and gathers what became of it when the launcher is through."""
    jobs = [i for i, cell in enumerate(cells) if found.to_run & set(make_plan([cell]).stages)]
    console.print(Text(f"{len(jobs)} of {len(cells)} cells are handed to hydra/launcher, each as one job"), soft_wrap=True)
    for i in jobs:
        outcome_file(sweep.folder, cells[i]).unlink(missing_ok=True)
    lost = "its job has left no word"
    try:
        hand_out(jobs, sweep.name)
    except Exception as error:  # submitit's, where a job was lost; the others may have done their work
        log = sweep.folder / "logs" / "launcher.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)))
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        lost = f"its job was lost, or goes on without this command: {first.strip().rstrip(':')} ({log})"
    outcome = Outcome({id: Progress(state) for id, state in found.states(plan).items()})
    for i in jobs:
        gather(outcome, cells[i], outcome_file(sweep.folder, cells[i]), store, lost)
    return outcome


def outcome_file(sweep: Path, cell: Cell) -> Path:
    return folder_of(sweep, cell) / "outcome.json"


def gather(outcome: Outcome, cell: Cell, path: Path, store: Store, lost: str) -> None:
    """Adds what one job has to say. Of a job that says nothing the first stage that isn't there has failed."""
    plan = make_plan([cell])
    try:
        said = {id: build(Progress, values, "") for id, values in read_json(path).items()}
    except (OSError, ValueError, TypeError, AttributeError, VlsafeError):
        missing = survey(plan, store, mend=False).to_run
        first = [id for id in plan.stages if id in missing][:1]
        said = {id: Progress("skipped") for id in plan.below(first) & missing}
        said |= {id: Progress("failed", error=lost) for id in first}
    for id, progress in said.items():
        before = outcome.stages.get(id)
        if before is None or before.state == "exists" or progress.state not in BETTER:
            continue
        if BETTER.index(progress.state) > BETTER.index(before.state):
            outcome.stages[id] = progress


def run_job(config: Mapping[str, Any], choices: Mapping[str, str], console: Console) -> int:
    """What the job of one cell does. Exit status: 0 all done, 1 a stage failed, 130 stopped."""
    from vlsafe.cells import make_cell

    cell = make_cell(config, choices)
    if cell.run.sweep is None:
        raise ConfigError("sweep: a job of one cell must be told the sweep's name")
    sweep = load_sweep(Path(cell.run.outputs).absolute() / "sweeps" / cell.run.sweep)
    folder = folder_of(sweep.folder, cell)
    store, plan = Store(Path(cell.run.store)), make_plan([cell])
    began = time.monotonic()
    found = survey(plan, store, mend=True)
    console.print(Text(f"sweep {sweep.name}, cell {sweep.cell_name(cell)}: {len(found.to_run)} stages to run"), soft_wrap=True)
    executor = Executor(plan, store, folder, cell.run, found, deepspeed_settings(cell))
    executor.check()
    executor.pool.warm_up()
    outcome = executor.execute()
    states = {id: dataclasses.asdict(progress) for id, progress in outcome.stages.items() if progress.state != "exists"}
    write_json(folder / "outcome.json", json.loads(json.dumps(states)))
    for id, progress in outcome.stages.items():
        if progress.state not in THERE:
            console.print(Text(f"{progress.state} {plan.stages[id].label}: {progress.error} {progress.log}"), soft_wrap=True)
    console.print(Text(f"{time.monotonic() - began:.1f} s"))
    return 130 if outcome.interrupted else int(bool(outcome.failed()))
