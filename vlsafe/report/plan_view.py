"""The plan as text: a summary before a run, and the whole list for `launch/plan.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlsafe.cells import flatten
from vlsafe.execute.resources import Needs, together
from vlsafe.execute.survey import Survey
from vlsafe.plan import Plan
from vlsafe.report.live import clock
from vlsafe.report.results import plain
from vlsafe.report.text import keep_end, printable, shorten, widen
from vlsafe.stage import STAGE_KINDS

ROOM_FOR_THREADS, ROOM_FOR_KEYS = 100, 120
GAP = 2
LEAST = 16  # columns of what is shortened at all, so that it says something on any terminal
LONGEST_VALUE = 16
KEY_DIGITS = 6
ALWAYS_WHOLE = ("", "stage", "cells", "threads", "estimate", "key")
RIGHT = ("cells", "threads", "estimate")


class Row(NamedTuple):
    """Columns by their headings; `left` where something of it must run."""

    left: bool
    columns: Mapping[str, str]


def summary(plan: Plan, found: Survey, wall: float | None) -> str:
    """`9 cells need 1 model, 1 adaptation, …: 20 stages exist, 42 to run, about 3:10`."""
    counts = ", ".join(f"{n} {kind}" for kind, n in plan.counts().items() if n)
    cells = f"{len(plan.cells)} cell{'s' * (len(plan.cells) != 1)}"
    if not found.to_run:
        return f"{cells}: {counts}; everything exists, nothing to run"
    exist = len(plan.stages) - len(found.to_run)
    time = "time unknown until each kind of stage has run once" if wall is None else f"about {clock(wall)}"
    return f"{cells}: {counts}; {exist} exist, {len(found.to_run)} to run, {time}"


def plan_table(plan: Plan, found: Survey, console: Console, needs: Mapping[str, Needs]) -> Table:
    """One line for each stage that is not about a single benchmark, one line for all the evaluation of a model.

    A terminal's width decides how much is said: `what` and `for` are shortened, nothing else. In a pipe nothing is, for which
    the console is widened.
    """
    rows = _rows(plan, found, needs)
    names = list(rows[0].columns) if rows else list(ALWAYS_WHOLE)
    if console.is_terminal and console.width < ROOM_FOR_KEYS:
        names = [n for n in names if n not in ("key", "for")]
    if console.is_terminal and console.width < ROOM_FOR_THREADS:
        names.remove("threads")
    sizes = {n: max(cell_len(n), *(cell_len(row.columns[n]) for row in rows)) if rows else len(n) for n in names}
    fixed = sum(sizes[n] for n in names if n in ALWAYS_WHOLE) + GAP * (len(names) - 1)
    widen(console, needed=sum(sizes.values()) + GAP * (len(names) - 1), whole=fixed + LEAST)
    room = console.width - fixed
    if "for" in sizes:
        sizes["for"] = min(sizes["for"], max(room - sizes["what"], room // 3))
        room -= sizes["for"]
    if "what" in sizes:
        sizes["what"] = min(sizes["what"], room)
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, GAP, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True, width=sizes[name])
    whats = shorten([row.columns["what"] for row in rows], sizes.get("what", LEAST))
    for row, what in zip(rows, whats, strict=True):
        shown = {**row.columns, "what": what, "for": keep_end(row.columns["for"], sizes.get("for", 0))}
        mark = Text(row.columns[""], style="yellow" if row.left else "green")
        table.add_row(mark, *(Text(shown[n]) for n in names[1:]))
    return table


def _rows(plan: Plan, found: Survey, needs: Mapping[str, Needs]) -> list[Row]:
    needed, names = plan.cells_of(), distinct_labels(plan)
    rows = []
    for kind in STAGE_KINDS[:4]:
        for id, stage in plan.stages.items():
            if stage.kind == kind:
                cells = len(needed[id])
                rows.append(_row([id], kind, names[id], found, cells, taken([needs[id]]), stage.key, _roles(plan, id)))
    for model, ids in evaluations(plan).items():
        asked = {plan.stages[id].label for id in ids if plan.stages[id].kind == "generate"}
        what = f"{names[model]} · {len(asked)} benchmark{'s' * (len(asked) != 1)}"
        cells = len({c for id in ids for c in needed[id]})
        rows.append(_row(ids, "evaluate", what, found, cells, taken(needs[i] for i in ids), "", _roles(plan, model)))
    return rows


def _row(ids: Sequence[str], kind: str, what: str, found: Survey, cells: int, threads: str, key: str, roles: str) -> Row:
    left = [id for id in ids if id in found.to_run]
    known = [found.seconds[id] for id in left]
    seconds = None if any(s is None for s in known) else sum(s for s in known if s is not None)
    estimate = "exists" if not left else "unknown" if seconds is None else clock(seconds) if seconds >= 1 else "< 1 s"
    said = {"stage": kind, "what": what, "cells": str(cells), "threads": threads, "estimate": estimate}
    return Row(bool(left), {"": "→" if left else "✓", **said, "key": key, "for": roles})


def taken(group: Iterable[Needs]) -> str:
    """`1`; of several processes `2 × 1`, with as many GPUs `8 × 1, 8 GPUs`."""
    needs = together(group)
    gpus = f", {needs.gpus * needs.nodes} GPUs" if needs.gpus * needs.nodes > 1 else ""
    return (f"{needs.processes} × " if needs.processes > 1 else "") + str(needs.threads) + gpus


def evaluations(plan: Plan) -> dict[str, list[str]]:
    """The `generate` and `judge` stages of each model."""
    groups: dict[str, list[str]] = {}
    for id, stage in plan.stages.items():
        if stage.kind in ("generate", "judge"):
            generate = stage if stage.kind == "generate" else plan.stages[stage.parents["responses"]]
            groups.setdefault(generate.parents["model"], []).append(id)
    return groups


# Telling stages apart


def distinct_labels(plan: Plan) -> dict[str, str]:
    """The label of every stage that makes a model, with what tells it from others of the same label: `… › ties · seed=1`."""
    alike: dict[str, list[str]] = {}
    for id, stage in plan.stages.items():
        if stage.kind in STAGE_KINDS[:4]:
            alike.setdefault(printable(stage.label), []).append(id)
    names = {}
    for label, ids in alike.items():
        for id, text in zip(ids, _differences(plan, ids) if len(ids) > 1 else [""], strict=True):
            names[id] = f"{label} · {text}" if text else label
    return names


def _differences(plan: Plan, ids: Sequence[str]) -> list[str]:
    """For each stage the few settings, its own or of what it is made from, that set it apart; else its key's first digits."""
    settings = [_settings(plan, id) for id in ids]
    chosen: list[str] = []
    classes: list[tuple[str, ...]] = [()] * len(ids)
    for path in dict.fromkeys(path for said in settings for path in said):
        finer = [(*c, said.get(path, "none")) for c, said in zip(classes, settings, strict=True)]
        if len(set(finer)) > len(set(classes)) and all(len(said.get(path, "")) <= LONGEST_VALUE for said in settings):
            chosen, classes = [*chosen, path], finer
    if len(set(classes)) < len(ids):
        return [plan.stages[id].key[:KEY_DIGITS] for id in ids]
    last = [path.rpartition(".")[2] for path in chosen]
    short = [name if last.count(name) == 1 else path for name, path in zip(last, chosen, strict=True)]
    return [printable(" ".join(f"{n}={v}" for n, v in zip(short, values, strict=True))) for values in classes]


def _settings(plan: Plan, id: str) -> dict[str, str]:
    """What decides a stage's result, by dotted path: its own settings, then those of its parents, the nearest first."""
    said: dict[str, str] = {}
    todo = [id]
    while todo:
        stage = plan.stages[todo.pop(0)]
        # A spec leaves out some settings that have their default value, so that keys stay as they were: then it is said here.
        for source in (stage.spec, stage.settings):
            for group, value in source.items():
                for path, item in flatten(value, group).items():
                    said.setdefault(path, plain(item))
        todo.extend(stage.parents.values())
    return said


def _roles(plan: Plan, id: str) -> str:
    """What the stage is for: `adapted of 6 cells, merge of 2`."""
    roles: dict[str, int] = {}
    for cell in plan.cells:
        for role, stage in cell.roles.items():
            if stage == id:
                roles[role] = roles.get(role, 0) + 1
    return ", ".join(f"{role} of {n}" for role, n in roles.items())
