"""What a sweep ends with: its files, its table, and what failed, with the place of the traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from vlsafe.plan import Plan
from vlsafe.report import build, layout, markdown, results, table
from vlsafe.report.aggregate import OVER_SEEDS, write_over_seeds
from vlsafe.report.build import shown
from vlsafe.report.grid import Grid
from vlsafe.report.live import clock
from vlsafe.report.outputs import Reason, cell_results
from vlsafe.report.source import Source, gather
from vlsafe.report.text import printable
from vlsafe.stand_in.notice import notice_for
from vlsafe.store import Store
from vlsafe.sweep import Sweep

STAGE_FAILED, STOPPED = 1, 130
MAX_CELLS_NAMED = 6


class Outcome(Protocol):
    @property
    def stages(self) -> Mapping[str, Any]: ...

    @property
    def interrupted(self) -> bool: ...


def print_report(
    sweep: Sweep, plan: Plan, store: Store, states: Mapping[str, str], outcome: Outcome, console: Console, seconds: float
) -> int:
    """Writes the results and the report, prints the table, and returns the exit status.
    A sweep that was stopped has no report built: whoever stops it wants to be let go."""
    scored = results.score(cell_results(sweep, plan, states, store))
    grid = write_results(scored, sweep.folder)
    console.print()
    if notice := notice_for(sweep.name):
        console.print(Text(notice, style="bold reverse"), soft_wrap=True)
    table.show(grid, console)
    console.print()
    if outcome.interrupted:
        print_stopped(states, console)
    failed = print_failures(sweep, plan, outcome, console)
    if not outcome.interrupted:

        def gathered() -> Source:
            return gather(sweep, plan, store, states, scored, reasons(outcome))

        console.print(Text(build.report(sweep.name, sweep.folder, gathered, console)), soft_wrap=True)
    console.print(Text(f"{clock(seconds)} · results.csv, results.md and logs in {shown(sweep.folder)}"), soft_wrap=True)
    return STOPPED if outcome.interrupted else STAGE_FAILED if failed else 0


def write_results(scored: Sequence[results.Scored], folder: Path) -> Grid:
    """results.csv, over several seeds their means beside it, and results.md, whose table is returned."""
    results.write_csv(scored, folder / "results.csv")
    write_over_seeds(scored, folder / OVER_SEEDS)
    grid = layout.arrange(scored)
    markdown.write_markdown(grid, folder / "results.md")
    return grid


def reasons(outcome: Outcome) -> dict[str, Reason]:
    return {id: Reason(p.error, p.log) for id, p in outcome.stages.items() if p.state == "failed"}


def print_stopped(states: Mapping[str, str], console: Console) -> None:
    left = sum(state in ("pending", "interrupted") for state in states.values())
    console.print(Text(f"Stopped. {left} stages are left: the same command goes on from here.", style="yellow"), soft_wrap=True)


def print_failures(sweep: Sweep, plan: Plan, outcome: Outcome, console: Console) -> bool:
    failed = [id for id, progress in outcome.stages.items() if progress.state == "failed"]
    needed = plan.cells_of()
    same: dict[tuple[str, str], list[str]] = {}
    for id in failed:
        same.setdefault((outcome.stages[id].error, outcome.stages[id].log), []).append(id)
    for id, *others in same.values():
        progress = outcome.stages[id]
        cells = [sweep.cell_name(plan.cells[i].cell) for i in needed[id]]
        more = f" and {len(cells) - MAX_CELLS_NAMED} more" if len(cells) > MAX_CELLS_NAMED else ""
        console.print(
            Text(f"FAILED {plan.stages[id].kind} {printable(plan.stages[id].label)}: {printable(progress.error)}", style="red"),
            soft_wrap=True,
        )
        if others:
            console.print(Text(f"  and {len(others)} more stages of the same task, for the same reason", style="red"))
        console.print(Text(f"  cells: {', '.join(cells[:MAX_CELLS_NAMED])}{more}"), soft_wrap=True)
        console.print(Text(f"  traceback: {shown(Path(progress.log))}"), soft_wrap=True)
    skipped = sum(progress.state == "skipped" for progress in outcome.stages.values())
    if skipped:
        console.print(Text(f"{skipped} stages were left out because they need what failed.", style="red"), soft_wrap=True)
    return bool(failed)
