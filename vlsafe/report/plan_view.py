"""The plan as text: a summary before a run, and the whole list for `launch/plan.py`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlsafe.execute.survey import Survey
from vlsafe.plan import Plan
from vlsafe.report.live import clock
from vlsafe.report.text import printable
from vlsafe.stage import STAGE_KINDS

WIDE = 120


def summary(plan: Plan, found: Survey, wall: float | None) -> str:
    """`9 cells need 1 model, 1 adaptation, …: 20 stages exist, 42 to run, about 3:10`."""
    counts = ", ".join(f"{n} {kind}" for kind, n in plan.counts().items() if n)
    cells = f"{len(plan.cells)} cell{'s' * (len(plan.cells) != 1)}"
    if not found.to_run:
        return f"{cells}: {counts}; everything exists, nothing to run"
    exist = len(plan.stages) - len(found.to_run)
    time = "time unknown until each kind of stage has run once" if wall is None else f"about {clock(wall)}"
    return f"{cells}: {counts}; {exist} exist, {len(found.to_run)} to run, {time}"


def plan_table(plan: Plan, found: Survey, console: Console, threads: dict[str, int]) -> Table:
    """One line for each stage that is not about a single benchmark, one line for all the evaluation of a model."""
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("", width=1)
    table.add_column("stage", no_wrap=True)
    table.add_column("what", no_wrap=True, overflow="ellipsis", ratio=1, min_width=20)
    table.add_column("cells", justify="right", no_wrap=True)
    table.add_column("threads", justify="right", no_wrap=True)
    table.add_column("estimate", justify="right", no_wrap=True)
    if wide:
        table.add_column("key", no_wrap=True)
        table.add_column("for", no_wrap=True, overflow="ellipsis", ratio=1)
    needed = plan.cells_of()
    for kind in STAGE_KINDS[:4]:
        for id, stage in plan.stages.items():
            if stage.kind == kind:
                extra = (stage.key, _roles(plan, id)) if wide else ()
                table.add_row(*_row([id], kind, stage.label, found, len(needed[id]), threads[id]), *extra)
    for model, ids in evaluations(plan).items():
        what = f"{plan.stages[model].label} · {len(ids) // 2} benchmarks"
        cells = len({c for id in ids for c in needed[id]})
        extra = ("", _roles(plan, model)) if wide else ()
        table.add_row(*_row(ids, "evaluate", what, found, cells, threads[ids[0]]), *extra)
    return table


def evaluations(plan: Plan) -> dict[str, list[str]]:
    """The `generate` and `judge` stages of each model."""
    groups: dict[str, list[str]] = {}
    for id, stage in plan.stages.items():
        if stage.kind in ("generate", "judge"):
            generate = stage if stage.kind == "generate" else plan.stages[stage.parents["responses"]]
            groups.setdefault(generate.parents["model"], []).append(id)
    return groups


def _row(ids: list[str], kind: str, label: str, found: Survey, cells: int, threads: int) -> tuple[str | Text, ...]:
    left = [id for id in ids if id in found.to_run]
    known = [found.seconds[id] for id in left]
    seconds = None if any(s is None for s in known) else sum(s for s in known if s is not None)
    state = Text("→", style="yellow") if left else Text("✓", style="green")
    estimate = "exists" if not left else "unknown" if seconds is None else clock(seconds) if seconds >= 1 else "< 1 s"
    return state, kind, printable(label), str(cells), str(threads), estimate


def _roles(plan: Plan, id: str) -> str:
    """What the stage is for: `adapted of 6 cells, merge of 2`."""
    roles: dict[str, int] = {}
    for cell in plan.cells:
        for role, stage in cell.roles.items():
            if stage == id:
                roles[role] = roles.get(role, 0) + 1
    return ", ".join(f"{role} of {n}" for role, n in roles.items())
