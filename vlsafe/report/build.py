"""Builds a sweep's report: report.html, tables/ and figures/, and only where something that it depends on has changed."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from vlsafe.files import read_json, write_atomic, write_json
from vlsafe.report.points import benchmarks, points
from vlsafe.report.source import Source
from vlsafe.report.text import printable

REPORT, RECORD = "report.html", ".report.json"


def build(source: Source) -> Path:
    """Writes everything and returns the path of report.html; what an earlier report left in tables/ and figures/ goes."""
    from vlsafe.report.browser import embed
    from vlsafe.report.claims import judge_claims
    from vlsafe.report.curves import adaptation_charts
    from vlsafe.report.heatmap import heat_map
    from vlsafe.report.html import render
    from vlsafe.report.latex import benchmark_tables, write_tables
    from vlsafe.report.tradeoff import trade_offs

    folder = source.folder
    before = _record(folder).get("files", {})
    (folder / RECORD).unlink(missing_ok=True)
    shown, asked = points(source.scored), benchmarks(source.scored)
    tradeoffs, heat, curves = trade_offs(shown, asked), heat_map(shown, asked), adaptation_charts(source.scored)
    claims = judge_claims(source.scored, source.control)
    text = render(source, tradeoffs, heat, curves, benchmark_tables(source.scored), embed(source), claims)
    written = write_tables(source.scored, folder / "tables")
    for chart in [*tradeoffs, *([heat] if heat else []), *curves]:
        written += chart.save(folder / "figures")
    write_atomic(folder / REPORT, text)
    written.append(folder / REPORT)
    names = {str(p.relative_to(folder)): p.stat().st_size for p in written}
    _remove(folder, set(before) - set(names))
    write_json(folder / RECORD, {"digest": source.digest(), "files": names})
    return folder / REPORT


def is_fresh(source: Source) -> bool:
    """Whether the report that is there was made from the same things, and all its files are still as they were written."""
    record = _record(source.folder)
    if record.get("digest") != source.digest():
        return False
    try:
        return all((source.folder / name).stat().st_size == size for name, size in record["files"].items())
    except OSError:
        return False


def report(name: str, folder: Path, gathered: Callable[[], Source], console: Console) -> str:
    """Builds the report unless it is fresh, and says what came of it in one line. An error never leaves this function: results
    that took hours are not a failure because a page could not be drawn."""
    try:
        source = gathered()
        if is_fresh(source):
            return f"report: {shown(folder / REPORT)}"
        began = time.monotonic()
        with building(console):
            path = build(source)
        return f"report: {shown(path)} ({time.monotonic() - began:.1f} s)"
    except Exception as error:
        log = folder / "logs" / "report.log"
        with contextlib.suppress(OSError):
            write_atomic(log, "".join(traceback.format_exception(error)))
        reason = printable(f"{type(error).__name__}: {' '.join(str(error).split())}", 200)
        return f"no report ({reason}); once that is mended: python launch/report.py {name}"


def building(console: Console) -> contextlib.AbstractContextManager[object]:
    """Says that the report is being built: where there is a terminal, until it is there."""
    if console.is_terminal:
        return console.status("building the report")
    console.print("building the report")
    return contextlib.nullcontext()


def shown(path: Path) -> str:
    """Relative to the current folder where it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _record(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        record = read_json(folder / RECORD)
        if isinstance(record, dict) and isinstance(record.get("files"), dict):
            return record
    return {}


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Files of an earlier report, by the names that it recorded: nothing above the folders that are the report's own."""
    for name in names:
        path = folder / name
        if path.parent in (folder / "tables", folder / "figures"):
            path.unlink(missing_ok=True)
