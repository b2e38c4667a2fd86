"""One thing that was looked at, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlsafe.report.text import printable

State = Literal["fine", "note", "missing"]
MARKS = {"fine": ("✓", "green"), "note": ("•", "yellow"), "missing": ("✗", "red")}
WIDE, MOST = 100, 40  # columns from which `what` has a column of its own, and what that has at most


class Finding(NamedTuple):
    """`mend` is the command, the setting or the page that helps; only what is missing makes the command fail."""

    state: State
    what: str
    found: str
    mend: str = ""


def gigabytes(size: float) -> str:
    """`13.5 GB`, in units of 10⁹ bytes."""
    return f"{size / 1e9:,.1f} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"


def show(findings: Sequence[Finding], console: Console) -> None:
    """What was looked at beside what was found, on a narrow terminal above it."""
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=1)
    if wide:
        table.add_column(max_width=MOST, overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for finding in findings:
        mark, style = MARKS[finding.state]
        said = Text(printable(finding.found))
        if finding.mend:
            said.append(f"\n→ {printable(finding.mend)}", style=style)
        what = Text(printable(finding.what), style="bold")
        table.add_row(Text(mark, style=style), *([what, said] if wide else [what + Text("\n", style="not bold") + said]))
    console.print(table)


def summary(findings: Sequence[Finding]) -> str:
    missing = sum(finding.state == "missing" for finding in findings)
    if not missing:
        return "nothing is missing"
    return f"{missing} {'thing is' if missing == 1 else 'things are'} missing: see ✗"
