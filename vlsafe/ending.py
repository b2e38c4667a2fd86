"""What a command begins and a sweep ends with, wherever its stages run: plan.json, cells.jsonl, results, table, report."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console

from vlsafe.execute.progress import Outcome
from vlsafe.execute.survey import Survey, survey
from vlsafe.plan import Plan, make_plan
from vlsafe.report.final import print_report, reasons
from vlsafe.report.outputs import THERE, write_cells, write_plan
from vlsafe.store import Store
from vlsafe.sweep import Sweep, load_sweep, record_lock


def announce(sweep: Sweep, plan: Plan, found: Survey, console: Console, said: str | None = None) -> None:
    """The sweep's name, what was found corrupt, and what is to run; `said` has how long it takes, where that is known."""
    from vlsafe.report.plan_view import summary

    console.print(f"sweep {sweep.name}", style="bold", markup=False)
    for note in found.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(said or summary(plan, found, None).partition(", time unknown")[0], soft_wrap=True)


def conclude(
    sweep: Sweep, plan: Plan, store: Store, states: Mapping[str, str], outcome: Outcome, console: Console, began: float
) -> int:
    """Exit status: 0 all done, 1 a stage failed, 130 stopped. `outcome` has no stages where there was nothing to run."""
    if outcome.stages:
        # Another command may have added cells meanwhile: whoever ends last writes all of them.
        with record_lock(sweep.folder):
            sweep = load_sweep(sweep.folder)
            plan = make_plan(sweep.cells)
        states = {id: states.get(id, "pending") for id in plan.stages}
        now = survey(plan, store, mend=False)
        states |= {id: "found" for id in plan.stages if id not in now.to_run and states[id] not in THERE}
        write_plan(sweep, plan, now, states, reasons(outcome))
    write_cells(sweep, plan, states, store)
    return print_report(sweep, plan, store, states, outcome, console, time.monotonic() - began)
