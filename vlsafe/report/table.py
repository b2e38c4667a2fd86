"""The terminal table at the end of a sweep, for any width: as much as fits, and never a wrapped line.

160 columns hold values with intervals, 80 hold compact values (.03); where even these don't fit, the axes follow one another.
Means over seeds carry their standard deviation (in narrow tables on a line of its own), and the seeds follow while all of it
fits a screen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from vlsafe.report.grid import AXIS_TITLES, Column, Entry, Grid, Line, span
from vlsafe.report.text import fit, keep_ends, printable

GAP = 1
SCREEN = 30  # lines of a table that still show each seed
LABEL_CAP = 14
SHORT_HEADS = {"adaptation": "adapt", "safety_tune": "tune"}
SHORT_AXES = {
    "text safety": "text",
    "multimodal safety": "multimodal",
    "over-refusal": "over-refusal",
    "helpfulness": "helpful",
}
UNDONE = {"failed": "fail", "skipped": "skip", "missing": "…"}


@dataclass(frozen=True)
class Style:
    """How much an entry says: `value` columns of figures, then one for '*', one for a flag, and an interval or not."""

    value: int
    interval: bool
    axis_gap: int = 3

    @property
    def width(self) -> int:
        return self.value + 2 + (8 if self.interval else 0)


WIDE, MEDIUM, COMPACT = Style(4, True), Style(4, False), Style(3, False, axis_gap=2)


def show(grid: Grid, console: Console | None = None) -> None:
    """Print the table; colour only on a terminal and without NO_COLOR, which rich sees to."""
    console = console or Console(highlight=False, soft_wrap=True)
    for line in render(grid, console.width):
        console.print(line, soft_wrap=True, highlight=False)


def render(grid: Grid, width: int) -> list[Text]:
    """The lines of the table, none wider than `width` columns down to about 40."""
    if not grid.lines:
        return [Text("No results yet.")]
    whole = len(grid.lines)
    if whole > SCREEN:
        grid = replace(grid, lines=tuple(line for line in grid.lines if line.kind != "seed"))
    style, parts = _choose(grid, width)
    title = f"{grid.sweep}: {grid.cells} cell{'s' if grid.cells != 1 else ''}"
    lines = [Text(fit(title, width, left=True).rstrip(), style="bold")]
    lines += [Text(part, style="dim") for part in _wrap(_facts(grid, style, len(grid.lines) < whole), width)]
    for part in parts:
        lines += [Text(""), *_block(grid, part, style, width)]
    legend = [*_wrap(_legend(grid), width), *_wrap(grid.execution, width)]
    return [*lines, Text(""), *(Text(part, style="dim") for part in legend)]


def _legend(grid: Grid) -> list[str]:
    return ["↓ lower is better, ↑ higher is better", *grid.notes]


def _facts(grid: Grid, style: Style, without_seeds: bool) -> list[str]:
    intervals = "95 % Wilson intervals" if style.interval else "intervals in results.csv"
    counts = sorted(n for c in grid.columns if c.n for n in c.n)
    shown = [f"n = {span(counts[0], counts[-1])} a column", intervals] if counts else []
    spread = [grid.over_seeds] if grid.over_seeds else []
    left = ["each seed in results.md"] if without_seeds else []
    return [*grid.constants, f"judge {', '.join(grid.judges)}", *grid.conditions, *shown, *spread, *left]


def _wrap(parts: Sequence[str], width: int) -> list[str]:
    """Parts joined by ' · ', broken between parts only."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + 3 + cell_len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(fit(part, width, left=True).rstrip())
    return lines


# Fitting


def _label_widths(grid: Grid, heads: Sequence[str]) -> list[int]:
    return [
        min(LABEL_CAP, max(cell_len(head), *(cell_len(line.labels[i]) for line in grid.lines))) for i, head in enumerate(heads)
    ]


def _heads(grid: Grid, style: Style) -> list[str]:
    return [SHORT_HEADS.get(h, h) if style is COMPACT else h for h in grid.heads]


def _width(grid: Grid, columns: Sequence[Column], style: Style) -> int:
    labels = sum(w + GAP for w in _label_widths(grid, _heads(grid, style)))
    axes = len({c.axis for c in columns})
    return labels + sum(style.width + GAP for _ in columns) + axes * (style.axis_gap - GAP)


def _choose(grid: Grid, width: int) -> tuple[Style, list[list[Column]]]:
    """The richest style in which all columns fit, else the compact one in as few tables as possible."""
    for style in (WIDE, MEDIUM, COMPACT):
        if _width(grid, grid.columns, style) <= width:
            return style, [list(grid.columns)]
    parts: list[list[Column]] = [[]]
    for axis in dict.fromkeys(c.axis for c in grid.columns):
        group = [c for c in grid.columns if c.axis == axis]
        if parts[-1] and _width(grid, parts[-1] + group, COMPACT) > width:
            parts.append([])
        for column in group:
            if parts[-1] and _width(grid, [*parts[-1], column], COMPACT) > width:
                parts.append([])
            parts[-1].append(column)
    return COMPACT, parts


# Drawing


def _block(grid: Grid, columns: Sequence[Column], style: Style, width: int) -> list[Text]:
    heads = _heads(grid, style)
    labels = _label_widths(grid, heads)
    names = short_benchmarks(grid.columns)
    sizes = _sizes(columns, [names[c.benchmark] for c in columns], style, width - _width(grid, columns, style))
    lefts = [style.axis_gap if i == 0 or columns[i - 1].axis != c.axis else GAP for i, c in enumerate(columns)]
    blank = " " * (sum(w + GAP for w in labels) - GAP)
    axes, goals, benchmarks, counts = Text(blank), Text(blank), Text(), Text(blank)
    benchmarks.append(" ".join(fit(h, w, left=True) for h, w in zip(heads, labels, strict=True)))
    for start, end in _axis_runs(columns):
        room = sum(sizes[start:end]) + GAP * (end - start - 1)
        title = AXIS_TITLES[columns[start].axis]
        title = title if cell_len(title) + 4 <= room else SHORT_AXES.get(title, title)
        axes.append(" " * style.axis_gap + _centre(fit(title, min(room, cell_len(title)), left=True), room, "─"))
        goals.append(" " * style.axis_gap + _centre(columns[start].goal, room, " "))
        for i in range(start, end):
            name = _abbreviate(names[columns[i].benchmark], sizes[i])
            benchmarks.append(" " * lefts[i] + fit(name, sizes[i], left=style.interval))
            counts.append(" " * lefts[i] + fit(columns[i].count, sizes[i], left=style.interval))
    total = cell_len(benchmarks.plain)
    lines = [axes, goals, benchmarks, *([counts] if style.interval else [])]
    for heading, look in zip(lines, ("bold", "dim", "bold", "dim"), strict=False):
        heading.stylize(look)
        heading.rstrip()
    which = [grid.columns.index(c) for c in columns]
    fitted = [_fitted([line.labels[i] for line in grid.lines], width) for i, width in enumerate(labels)]
    previous: Line | None = None
    mean: Line | None = None
    for line in grid.lines:
        if previous is None or previous.is_cell != line.is_cell:
            lines.append(Text("─" * total, style="dim"))
        for shown, entries in _drawn(line, mean, which, style):
            text = Text(
                " ".join(fit(cut.get(label, label), w, left=True) for label, cut, w in zip(shown, fitted, labels, strict=True))
            )
            for entry, size, left in zip(entries, sizes, lefts, strict=True):
                spare = " " * (size - style.width)
                text.append(" " * left + ("" if style.interval else spare))
                text.append_text(entry)
                text.append(spare if style.interval else "")
            text.rstrip()
            text.stylize("dim" if line.kind == "seed" else "")
            lines.append(text)
        previous, mean = line, line if line.kind == "mean" else mean
    return lines


def _fitted(labels: Sequence[str], width: int) -> dict[str, str]:
    """Labels as they fit, those cut in the middle that would be alike if their ends were cut."""
    cut = {label: fit(label, width, left=True) for label in labels}
    alike = Counter(cut.values())
    return {label: keep_ends(label, width) if alike[shown] > 1 else shown for label, shown in cut.items()}


def _drawn(line: Line, mean: Line | None, which: Sequence[int], style: Style) -> list[tuple[Sequence[str], list[Text]]]:
    """A line's labels and entries: of a seed, only the labels that the mean lacks; under a mean without room, its spread."""
    entries = [_draw(line.entries[i], style) for i in which]
    if line.kind == "seed" and mean is not None:
        return [([label if label != above else "" for label, above in zip(line.labels, mean.labels, strict=True)], entries)]
    if line.kind != "mean" or style.interval:
        return [(line.labels, entries)]
    at = max((i for i, label in enumerate(line.labels) if label.endswith(" seeds") or " of " in label), default=0)
    below = ["±" if i == at else "" for i in range(len(line.labels))]
    return [(line.labels, entries), (below, [_draw_spread(line.entries[i], style) for i in which])]


def _draw_spread(entry: Entry | None, style: Style) -> Text:
    sd = entry.spread.sd if entry is not None and entry.spread is not None else None
    number = "" if sd is None else short(sd) if style is COMPACT else f"{sd:.2f}"
    return Text(fit(number, style.value) + " " * (style.width - style.value), style="dim")


def _sizes(columns: Sequence[Column], names: Sequence[str], style: Style, spare: int) -> list[int]:
    """Widths of the columns: what entries need, then room for the axes' titles, then for whole headings, while there is any."""
    sizes = [style.width] * len(columns)
    for start, end in _axis_runs(columns):
        title = AXIS_TITLES[columns[start].axis]
        lacking = cell_len(SHORT_AXES.get(title, title)) - sum(sizes[start:end]) - GAP * (end - start - 1)
        if 0 < lacking <= spare:
            sizes[end - 1] += lacking
            spare -= lacking
    for i in sorted(range(len(columns)), key=lambda i: cell_len(names[i])):
        lacking = cell_len(names[i]) - sizes[i]
        if 0 < lacking <= spare:
            sizes[i] += lacking
            spare -= lacking
    return sizes


def _axis_runs(columns: Sequence[Column]) -> list[tuple[int, int]]:
    starts = [i for i, c in enumerate(columns) if i == 0 or columns[i - 1].axis != c.axis]
    return list(zip(starts, [*starts[1:], len(columns)], strict=True))


def _centre(text: str, width: int, fill: str) -> str:
    room = width - cell_len(text)
    if room < 4:
        return " " * (room // 2) + text + " " * (room - room // 2)
    return fill * ((room - 2) // 2) + f" {text} " + fill * (room - 2 - (room - 2) // 2)


def _draw(entry: Entry | None, style: Style) -> Text:
    pad = " " * (style.width - style.value - 2)
    if entry is None:
        return Text(fit("–", style.value) + "  " + pad, style="dim")
    value = entry.metric.value
    if entry.status != "done":
        word = entry.status if style.interval and entry.status != "missing" else UNDONE[entry.status]
        return Text(
            fit(fit(word, style.value), style.width, left=True)
            if len(word) <= style.value
            else fit(word, style.width, left=True)
        )
    if value is None:
        return Text(fit("n=0", style.value) + "  " + pad, style="yellow")
    text = Text()
    number = short(value) if style is COMPACT else f"{value:.2f}"
    mark = ("*" if entry.best else "") + entry.flag
    text.append(fit(number, style.value), style="bold green" if entry.best else "")
    text.append(fit(mark, 2, left=True), style="bold green" if entry.best else "")
    if style.interval and entry.metric.low is not None and entry.metric.high is not None:
        text.append(f" {short(entry.metric.low)}–{short(entry.metric.high)}", style="dim")
    elif style.interval:
        sd = entry.spread.sd if entry.spread else None
        text.append(fit("" if sd is None else f" ±{short(sd)}", len(pad), left=True), style="dim")
    return text


def short(value: float) -> str:
    """A share in three characters: .03, or 1.0."""
    shown = f"{value:.2f}"
    return "1.0" if shown == "1.00" else shown[1:]


# Headings


def short_benchmarks(columns: Sequence[Column]) -> dict[str, str]:
    """Names without the words that all benchmarks share, nor those that the benchmarks of one axis share."""
    split = {c.benchmark: re.split(r"[_\-]", printable(c.benchmark)) for c in columns}
    _strip_common(split, list(split))
    for axis in {c.axis for c in columns}:
        group = list(dict.fromkeys(c.benchmark for c in columns if c.axis == axis))
        _strip_common(split, group)
    return {name: "_".join(parts) for name, parts in split.items()}


def _strip_common(split: dict[str, list[str]], names: Sequence[str]) -> None:
    while len(names) > 1 and len({split[n][0] for n in names}) == 1 and all(len(split[n]) > 1 for n in names):
        for name in names:
            split[name] = split[name][1:]


def _abbreviate(name: str, width: int) -> str:
    """Whole words where they fit, else a cut with a full stop."""
    if cell_len(name) <= width:
        return name
    words = name.split("_")
    for end in range(len(words) - 1, 0, -1):
        kept = "_".join(words[:end])
        if len(kept) >= 4 and cell_len(kept) <= width:
            return kept
    return fit(name, width, left=True)[: width - 1] + "."
