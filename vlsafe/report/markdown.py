"""The same table as Markdown (`results.md`), with every interval."""

from __future__ import annotations

from pathlib import Path

from vlsafe.files import write_atomic
from vlsafe.report.grid import AXIS_TITLES, Entry, Grid, Line
from vlsafe.report.text import markdown


def write_markdown(grid: Grid, path: Path) -> None:
    write_atomic(path, render(grid))


def render(grid: Grid) -> str:
    """A heading, what all cells share, the table, and its legend."""
    if not grid.lines:
        return "No results yet.\n"
    spread = [f"{grid.over_seeds}; then each seed"] if grid.over_seeds else []
    facts = [*grid.constants, f"judge {', '.join(grid.judges)}", *grid.conditions, *spread, "95 % Wilson intervals in brackets"]
    heads = [
        *(markdown(h) for h in grid.heads),
        *(f"{AXIS_TITLES[c.axis]}, {c.goal}: {markdown(c.benchmark)}" for c in grid.columns),
    ]
    counts = [""] * len(grid.heads) + [c.count for c in grid.columns]
    body = [[*_labels(line), *(_draw(e) for e in line.entries)] for line in grid.lines]
    first_cell = next((i for i, line in enumerate(grid.lines) if line.is_cell), None)
    if first_cell:  # between the reference rows and the cells
        body.insert(first_cell, ["*cells*", *[""] * (len(heads) - 1)])
    lines = [
        f"### {markdown(grid.sweep)}",
        "",
        " · ".join(markdown(fact) for fact in facts),
        "",
        _row(heads),
        _row([":---"] * len(grid.heads) + ["---:"] * len(grid.columns)),
        _row(counts),
        *(_row(row) for row in body),
        "",
        " · ".join(["↓ lower is better, ↑ higher is better", *(markdown(note) for note in grid.notes)]),
    ]
    if grid.execution:
        lines += ["", " · ".join(markdown(part) for part in grid.execution)]
    return "\n".join(lines) + "\n"


def _labels(line: Line) -> list[str]:
    shown = [markdown(label) for label in line.labels]
    return [f"**{label}**" if label and line.kind == "mean" else label for label in shown]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _draw(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    if entry.status != "done":
        return "…" if entry.status == "missing" else entry.status
    m, spread = entry.metric, entry.spread
    if m.value is None:
        return "n=0"
    value = (f"**{m.value:.2f}**\\*" if entry.best else f"{m.value:.2f}") + entry.flag
    if spread is not None:
        deviation = "" if spread.sd is None else f" ± {spread.sd:.2f}"
        return value + deviation + (f" ({spread.incomplete})" if spread.incomplete else "")
    return value if m.low is None or m.high is None else f"{value} [{m.low:.2f}, {m.high:.2f}]"
