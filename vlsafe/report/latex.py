"""Tables as LaTeX (booktabs) and CSV: the main one, and one for each benchmark."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import Metric
from vlsafe.files import write_atomic
from vlsafe.report.grid import AXIS_TITLES, METRIC_TITLES, Entry, Grid
from vlsafe.report.layout import arrange
from vlsafe.report.points import Point, benchmarks, points
from vlsafe.report.results import Scored
from vlsafe.report.text import printable

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "†": r"\dag{}", "‡": r"\ddag{}",
    "°": r"\textdegree{}", "–": "--", "…": r"\dots{}",
    "±": r"$\pm$", "·": r"\textperiodcentered{}", "›": r"\guilsinglright{}",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows of one benchmark's models: label, seed, then figures as `Metric` has them; `None` where not done."""

    benchmark: str
    axis: Axis
    metric: str
    rows: tuple[Row, ...]

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the metrics that stand beside the headline in some row."""
        return tuple(dict.fromkeys(m.name for row in self.rows for m in row.beside))


@dataclass(frozen=True)
class Row:
    label: str
    final: bool
    seed: str
    status: str
    headline: Metric
    beside: tuple[Metric, ...]

    def value(self, name: str) -> Metric | None:
        return next((m for m in self.beside if m.name == name), None)


def benchmark_tables(scored: Sequence[Scored]) -> list[Table]:
    """One for each benchmark, with a row for each model, single seeds apart."""
    shown = points(scored)
    return [_table(name, axis, shown) for name, axis in benchmarks(scored).items()]


def _table(name: str, axis: Axis, shown: Iterable[Point]) -> Table:
    rows = [
        Row(
            point.label,
            point.final,
            point.seed_of(model),
            s.result.status,
            s.headline,
            s.metrics[1:],
        )
        for point in shown
        for model in point.models
        if (s := model.scores.get(name)) is not None
    ]
    return Table(printable(name), axis, rows[0].headline.name if rows else "", tuple(rows))


def write_tables(scored: Sequence[Scored], folder: Path) -> list[Path]:
    """`main.tex`, `main.csv`, and both for each benchmark."""
    grid = arrange(scored)
    written = [_write(folder / "main.tex", main_latex(grid)), _write(folder / "main.csv", main_csv(grid))]
    for name, table in zip(file_names(benchmarks(scored)), benchmark_tables(scored), strict=True):
        written += [
            _write(folder / f"{name}.tex", benchmark_latex(table)),
            _write(folder / f"{name}.csv", benchmark_csv(table)),
        ]
    return written


def file_names(names: Iterable[str]) -> list[str]:
    """A file name for each benchmark, fit for any file system, none twice and none `main`."""
    taken, found = {"main"}, []
    for name in names:
        wanted = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80] or "benchmark"
        made, i = wanted, 2
        while made.lower() in taken:
            made, i = f"{wanted}-{i}", i + 1
        taken.add(made.lower())
        found.append(made)
    return found


def tex(text: str) -> str:
    """Text that LaTeX sets as it is: no command, group or formula of its own, on one line."""
    return "".join(SPECIAL.get(c, c) for c in unicodedata.normalize("NFC", printable(text)))


def main_latex(grid: Grid) -> str:
    """Cells by benchmarks with intervals below the figures' names; needs `booktabs`, and `graphicx` to fit the page's width."""
    if not grid.lines:
        return "% No results yet.\n"
    axes = [c.axis for c in grid.columns]
    spans = [(axis, axes.count(axis)) for axis in dict.fromkeys(axes)]
    at, rules = len(grid.heads) + 1, []
    for _, width in spans:
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    goals = {c.axis: c.goal for c in grid.columns}
    over = [rf"\multicolumn{{{n}}}{{c}}{{{tex(f'{AXIS_TITLES[axis]}, {goals[axis]}')}}}" for axis, n in spans]
    lines = [
        rf"% {tex(grid.sweep)}: needs \usepackage{{booktabs,graphicx,textcomp}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(grid.heads)}{'r' * len(grid.columns)}}}",
        r"\toprule",
        " & ".join([*([""] * len(grid.heads)), *over]) + r" \\",
        "".join(rules),
        " & ".join([*map(tex, grid.heads), *(tex(c.benchmark) for c in grid.columns)]) + r" \\",
        r"\midrule",
    ]
    before = grid.lines[0].is_cell
    for line in grid.lines:
        if line.kind == "seed":  # they stand in the benchmarks' tables
            continue
        if line.is_cell != before:
            lines.append(r"\midrule")
        before = line.is_cell
        entries = []
        for entry in line.entries:
            if entry is None:
                entries.append("--")
            elif entry.status != "done" or entry.metric.value is None:
                entries.append(tex(entry.status if entry.status != "done" else "n=0"))
            else:
                value = f"{entry.metric.value:.2f}"
                value = rf"\textbf{{{value}}}" if entry.best else value
                entries.append(f"{value}{tex(entry.flag)} {{\\scriptsize{_limits(entry)}}}")
        lines.append(" & ".join([*map(tex, line.labels), *entries]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    judged = f"judge {', '.join(grid.judges)}"
    spread = [grid.over_seeds] if grid.over_seeds else ["95 % Wilson intervals in brackets"]
    notes = [*grid.constants, judged, *grid.conditions, *spread, *grid.notes, *grid.execution]
    return "\n".join([*lines, *(f"% {tex(note)}" for note in notes)]) + "\n"


def _limits(entry: Entry) -> str:
    """The interval of one seed, the standard deviation of several."""
    if entry.spread is not None:
        return "" if entry.spread.sd is None else rf"$\pm$ {entry.spread.sd:.2f}"
    return f"[{entry.metric.low:.2f}, {entry.metric.high:.2f}]"


def main_csv(grid: Grid) -> str:
    """The main table with a column each for value, standard deviation over seeds, low, high and n of every benchmark."""
    heads = [
        *grid.heads,
        *(f"{c.benchmark} {part}" for c in grid.columns for part in (c.metric, "sd", "low", "high", "n", "status")),
    ]
    rows = []
    for line in grid.lines:
        fields: list[object] = list(line.labels)
        for entry in line.entries:
            m = entry.metric if entry else None
            sd = entry.spread.sd if entry and entry.spread else None
            fields += [m.value, sd, m.low, m.high, m.n, entry.status] if m and entry else [None] * 5 + ["not asked"]
        rows.append(fields)
    return _csv(heads, rows)


def benchmark_latex(table: Table) -> str:
    title = METRIC_TITLES.get(table.metric, table.metric)
    lines = [
        rf"% {tex(table.benchmark)}: needs \usepackage{{booktabs,textcomp}}",
        rf"\begin{{tabular}}{{lr{'r' * (3 + len(table.beside))}}}",
        r"\toprule",
        " & ".join(["model", "seed", tex(title), r"95\,\%", "n", *(tex(_name(n)) for n in table.beside)]) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        m = row.headline
        figures = (
            [f"{m.value:.3f}", f"[{m.low:.3f}, {m.high:.3f}]", str(m.n)]
            if m.value is not None
            else [tex("n=0" if row.status == "done" else row.status), "", ""]
        )
        beside = [_short(b.value) if (b := row.value(n)) and b.value is not None else "" for n in table.beside]
        lines.append(" & ".join([tex(row.label), tex(row.seed), *figures, *beside]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def benchmark_csv(table: Table) -> str:
    rows = [
        [row.label, row.seed, row.status, row.headline.value, row.headline.low, row.headline.high, row.headline.n]
        + [b.value if (b := row.value(n)) else None for n in table.beside]
        for row in table.rows
    ]
    return _csv(["model", "seed", "status", table.metric or "value", "ci_low", "ci_high", "n", *table.beside], rows)


def _short(value: float) -> str:
    """Three decimals of a share, one of a sum of scores."""
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def _name(metric: str) -> str:
    return metric.removesuffix("_rate")


def _csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([printable(h) for h in heads])
    for row in rows:
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else "" if v is None else v for v in row])
    return text.getvalue()


def _write(path: Path, text: str) -> Path:
    write_atomic(path, text)
    return path
