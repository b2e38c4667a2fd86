"""What a table of a sweep says, apart from how it looks: reference rows, then cells; axes, and their benchmarks as columns.

Reference rows are the models on the way (unaligned, base, adapted, tuned) that are no cell's own result; each stands once,
however many cells share it. A setting gets a column only where the cells differ in it. What differs in its seeds only stands
together: a line with the mean, then one for each seed. The best of a column is sought among cells only, by the mean over seeds,
judge by judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import Metric, headline
from vlsafe.report.aggregate import SEEDS, making, over_seeds, settings, shapes
from vlsafe.report.grid import Column, Entry, Grid, Line, span
from vlsafe.report.results import CHOICES, CellResult, Scored, plain
from vlsafe.report.text import printable

SHARE_WORTH_A_MARK = 0.1

Row = list[Scored]  # of one cell, role and judge


def arrange(scored: Iterable[Scored]) -> Grid:
    """The table of one sweep's records; intermediate checkpoints (`step`) are left to the curves."""
    final = [s for s in scored if s.result.step is None]
    several_judges = _several_judges(final)
    rows: dict[tuple[str, str, str], Row] = {}
    for s in final:
        rows.setdefault((s.result.cell, s.result.role, _judge(s.result) if several_judges else ""), []).append(s)
    cells = [row for row in rows.values() if row[0].result.final]
    references = _distinct_references(rows.values(), cells)
    values = _settings(cells)
    varied = [name for name, found in values.items() if len(found) > 1]
    if len(cells) == 1:  # nothing varies: what the cell is must still be said, and there is room
        varied = [name for name in ("adaptation", "safety_tune", "merge") if name in values]
    columns = _columns(final)
    on_the_way = [(row, _line(row, varied, columns, several_judges, shared=same)) for row, same in references]
    made = [(row, _line(row, varied, columns, several_judges)) for row in cells]
    lines = _by_seed(on_the_way, varied, columns)
    lines += _mark_best(_by_seed(made, varied, columns), columns, several_judges)
    return Grid(
        sweep=printable(final[0].result.sweep) if final else "",
        cells=len({row[0].result.cell for row in cells}),
        constants=tuple(f"{n} {next(iter(v))}" for n, v in values.items() if n not in varied and len(v) == 1),
        judges=tuple(dict.fromkeys(_judge(s.result) for s in final)),
        conditions=_conditions(final),
        heads=("role", *_short_names(varied), *(["judge"] if several_judges else [])),
        columns=columns,
        lines=tuple(lines),
        notes=_notes(lines),
        execution=_execution(final),
    )


def _judge(result: CellResult) -> str:
    return printable(f"{result.judge} v{result.judge_version}")


def _conditions(scored: Sequence[Scored]) -> tuple[str, ...]:
    values: dict[str, dict[str, None]] = {}
    for s in scored:
        for name, value in s.result.conditions.items():
            values.setdefault(name, {})[printable(plain(value))] = None
    return tuple(f"{printable(name)} {' or '.join(v)}" for name, v in values.items())


def _execution(scored: Sequence[Scored]) -> tuple[str, ...]:
    differences = dict.fromkeys(printable(difference) for s in scored for difference in s.result.execution)
    return ("‡ made otherwise than most", *differences) if differences else ()


def _several_judges(scored: Sequence[Scored]) -> bool:
    """Whether a benchmark has figures of more than one: of one cell, or of cells that differ in their judge."""
    seen: dict[str, str] = {}
    return any(seen.setdefault(s.result.benchmark, _judge(s.result)) != _judge(s.result) for s in scored)


def _identity(row: Row) -> frozenset[tuple[str, str]]:
    return frozenset((s.result.benchmark, s.result.key) for s in row)


def _distinct_references(rows: Iterable[Row], cells: Sequence[Row]) -> list[tuple[Row, list[CellResult]]]:
    """Each model on the way once, with the records that share it, in the order base, adapted, tuned, ... of appearance."""
    own = {_identity(row) for row in cells}
    found: dict[frozenset[tuple[str, str]], tuple[Row, list[CellResult]]] = {}
    for row in rows:
        if not row[0].result.final and _identity(row) not in own:
            found.setdefault(_identity(row), (row, []))[1].append(row[0].result)
    order = {"unaligned": 0, "base": 1, "adapted": 2, "tuned": 3}
    return sorted(found.values(), key=lambda pair: order.get(pair[0][0].result.role, 4))


def _settings(cells: Sequence[Row]) -> dict[str, dict[str, None]]:
    """Every setting's values over the cells, as shown, in order of appearance."""
    names = dict.fromkeys([*CHOICES, *(n for row in cells for n in row[0].result.swept)])
    shown = {n: dict.fromkeys(printable(settings(row[0].result).get(n, "")) for row in cells) for n in names}
    return {n: values for n, values in shown.items() if values and set(values) != {""}}


def _line(row: Row, varied: Sequence[str], columns: Sequence[Column], judged: bool, shared: Sequence[CellResult] = ()) -> Line:
    first = row[0].result
    labels = []
    for name in varied:
        values = {printable(settings(r).get(name, "")) for r in shared or [first]}
        says = len(values) == 1 and (first.final or shapes(first.role, first.choices.get("order"), name))
        labels.append(values.pop() if says else "")
    role = printable(first.role)
    if first.collapsed and "merge" in varied:
        labels[varied.index("merge")] += "†"
    elif first.collapsed:
        role += "†"
    role += "‡" if any(s.result.execution for s in row) else ""
    found = {(s.result.axis, s.result.benchmark): s for s in row}
    entries = tuple(_entry(found.get((c.axis, c.benchmark))) for c in columns)
    return Line((role, *labels, *([_judge(first)] if judged else [])), entries, first.final)


def _entry(scored: Scored | None) -> Entry | None:
    if scored is None:
        return None
    other, unparsed = scored.metric("other_rate"), scored.metric("unparsed_rate")
    flag = "°" if other and other.value is not None and other.value >= SHARE_WORTH_A_MARK else ""
    return Entry(scored.headline, scored.result.status, "?" if unparsed else flag)


def _columns(scored: Sequence[Scored]) -> tuple[Column, ...]:
    counts: dict[tuple[Axis, str], list[int]] = {}
    for s in scored:
        counts.setdefault((s.result.axis, s.result.benchmark), []).extend([s.headline.n] if s.headline.n else [])
    rank = {axis: i for i, axis in enumerate(get_args(Axis))}
    return tuple(
        Column(axis, benchmark, headline(axis), (min(n), max(n)) if n else None)
        for (axis, benchmark), n in sorted(counts.items(), key=lambda item: rank[item[0][0]])
    )


def _by_seed(rows: Sequence[tuple[Row, Line]], varied: Sequence[str], columns: Sequence[Column]) -> list[Line]:
    """Lines that differ in their seeds only stand together, after one with their mean; a model of all seeds stands once."""
    alike: dict[Any, dict[frozenset[tuple[str, str]], tuple[Row, Line]]] = {}
    for row, line in rows:
        first = row[0].result
        own = tuple(s for s in settings(first).items() if s[0] not in SEEDS) if first.final else making(first)
        group = alike.setdefault((first.role, first.final, own, _judge(first)), {})
        same = group.setdefault(_identity(row), (row, line))
        if same[1].labels != line.labels:
            both = tuple(a if a == b else "" for a, b in zip(same[1].labels, line.labels, strict=True))
            group[_identity(row)] = (row, replace(line, labels=both))
    lines = []
    for group in alike.values():
        each = list(group.values())
        if len(each) > 1:
            lines.append(_mean_line(each, varied, columns))
        lines += [replace(line, kind="seed") if len(each) > 1 else line for _, line in each]
    return lines


def _mean_line(rows: Sequence[tuple[Row, Line]], varied: Sequence[str], columns: Sequence[Column]) -> Line:
    """The first seed's line with means; where its seed stood, how many seeds there are: '3 seeds', or '2 of 3'."""
    asked: dict[tuple[Axis, str], list[Scored]] = {}
    for s in itertools.chain.from_iterable(row for row, _ in rows):
        asked.setdefault((s.result.axis, s.result.benchmark), []).append(s)
    entries = [_mean_entry(asked[c.axis, c.benchmark]) if (c.axis, c.benchmark) in asked else None for c in columns]
    done = [e.spread.seeds for e in entries if e is not None and e.spread is not None]
    count = f"{len(rows)} seeds" if min(done) == len(rows) else f"{span(min(done), max(done))} of {len(rows)}"
    labels = list(rows[0][1].labels)
    for i, name in enumerate(varied, start=1):
        if name in SEEDS and any(line.labels[i] != labels[i] for _, line in rows):
            labels[i], count = count, ""
    if count:  # seeds that no column shows
        labels[0] += f" ({count})"
    if "‡" not in labels[0] and any("‡" in line.labels[0] for _, line in rows):
        labels[0] += "‡"
    return Line(tuple(labels), tuple(entries), rows[0][1].is_cell, "mean")


def _mean_entry(scored: Sequence[Scored]) -> Entry:
    total, other = over_seeds(scored), over_seeds(scored, "other_rate").mean
    flag = "°" if other is not None and other >= SHARE_WORTH_A_MARK else ""
    unread = any(s.metric("unparsed_rate") for s in scored)
    return Entry(Metric(total.metric, total.mean, total.n, None, None), total.status, "?" if unread else flag, spread=total)


def _mark_best(lines: Sequence[Line], columns: Sequence[Column], judged: bool) -> list[Line]:
    """Every cell that ties for a column's best under its judge; none where all cells are alike."""
    entries = [list(line.entries) for line in lines]
    judges = [line.labels[-1] if judged else "" for line in lines]
    for judge, (c, column) in itertools.product(dict.fromkeys(judges), enumerate(columns)):
        compared = [row for row, by, line in zip(entries, judges, lines, strict=True) if by == judge and line.kind != "seed"]
        values = [e.metric.value for row in compared if (e := row[c]) is not None and e.metric.value is not None]
        if len(set(values)) < 2:
            continue
        best = min(values) if column.better == "lower" else max(values)
        for row in compared:
            entry = row[c]
            if entry is not None and entry.metric.value == best:
                row[c] = replace(entry, best=True)
    return [replace(line, entries=tuple(row)) for line, row in zip(lines, entries, strict=True)]


def _short_names(names: Sequence[str]) -> list[str]:
    """The last part of each dotted name, or all of it where that says two things."""
    last = [printable(name.rpartition(".")[2]) for name in names]
    return [short if last.count(short) == 1 else printable(name) for short, name in zip(last, names, strict=True)]


def _notes(lines: Sequence[Line]) -> tuple[str, ...]:
    entries = [e for line in lines for e in line.entries if e is not None]
    flags = {e.flag for e in entries}
    statuses = {e.status for e in entries}
    known = (
        (any(e.best for e in entries), f"* best of the cells{', by the mean' if any(e.spread for e in entries) else ''}"),
        ("°" in flags, f"° {100 * SHARE_WORTH_A_MARK:.0f} % or more of the answers neither refuse nor answer"),
        ("?" in flags, "? some answers could not be read: not counted"),
        (
            any("†" in label for line in lines for label in line.labels),
            "† one model on both sides of the merge: unmerged result",
        ),
        (any(e is None for line in lines for e in line.entries), "– not asked"),
        ("failed" in statuses, "failed: see the stage's log"),
        ("skipped" in statuses, "skipped: a stage before it failed"),
        ("missing" in statuses, "… not there yet"),
        (any(e.status == "done" and e.metric.n == 0 for e in entries), "n=0: nothing to count"),
    )
    return tuple(note for shown, note in known if shown)
