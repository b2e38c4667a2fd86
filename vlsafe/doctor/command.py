"""What `launch/doctor.py` does with the cells of a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vlsafe.cells import Cell
from vlsafe.doctor import hub, machine, room
from vlsafe.doctor.finding import Finding, show, summary
from vlsafe.doctor.listing import ask
from vlsafe.execute.survey import survey
from vlsafe.plan import make_plan
from vlsafe.store import Store


def examine(cells: Sequence[Cell], launcher: Mapping[str, Any] | None) -> list[Finding]:
    """Everything that was looked at; nothing is written, built or downloaded. The hub is asked for lists of files."""
    store = Store(Path(cells[0].run.store))
    findings = hub.notice(cells)
    lost = hub.folders(cells)
    if lost:
        return [*findings, *lost, *machine.packages(cells)]
    plan = make_plan(cells)
    to_run = set(survey(plan, store, mend=False).to_run)
    listings = ask(hub.wanted(cells, plan, to_run))
    return [
        *findings,
        *hub.hub(cells, plan, to_run, listings),
        *room.room(cells, plan, to_run, launcher),
        *room.disk(cells, plan, to_run, store, launcher, listings),
        *machine.packages(cells),
        *machine.compiler(cells, plan, to_run, launcher),
        *machine.slurm(launcher),
        *machine.tracking(cells),
    ]


def doctor(cells: Sequence[Cell], launcher: Mapping[str, Any] | None, console: Console) -> int:
    """Exit status: 0 nothing is missing, 1 something is."""
    findings = examine(cells, launcher)
    show(findings, console)
    console.print(f"\n{len(cells)} cell{'s' * (len(cells) != 1)}: {summary(findings)}", markup=False, soft_wrap=True)
    return int(any(finding.state == "missing" for finding in findings))
