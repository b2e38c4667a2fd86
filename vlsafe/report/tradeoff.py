"""The trade-off: safety against over-refusal, and against helpfulness, with intervals and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlsafe.eval.base import Axis
from vlsafe.report.figures import Chart, looks, new_figure, settle
from vlsafe.report.points import SAFETY, Estimate, Point, axes_mean, pareto, unsaid
from vlsafe.report.svg import INK, MUTED, PAPER, SERIES

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
AGAINST: tuple[tuple[Axis, str, str, float], ...] = (
    ("over_refusal", "over-refusal, refusal rate (less is better)", "over-refusal", 1.0),
    ("helpfulness", "helpfulness, accuracy (more is better)", "helpfulness", -1.0),
)
MAX_LABELS = 12
# Where a name may stand beside its mark, in points: the nearer ones first.
OFFSETS = (
    (6, 7, "left"), (6, -7, "left"), (-6, 7, "right"), (-6, -7, "right"), (7, 0, "left"), (-7, 0, "right"), (0, 12, "center"),
    (0, -12, "center"), (7, 17, "left"), (7, -17, "left"), (-7, 17, "right"), (-7, -17, "right"), (12, 26, "left"),
    (12, -26, "left"),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a point lies: x the other axis, y mean ASR, and the same for each of its seeds."""

    point: Point
    x: Estimate
    y: Estimate
    seeds: tuple[tuple[float, float], ...]


def trade_offs(points: Sequence[Point], benchmarks: Mapping[str, Axis]) -> list[Chart]:
    """Two charts, or fewer where an axis was not asked or no model has both."""
    charts = []
    for axis, label, short, direction in AGAINST:
        if axis in benchmarks.values() and set(SAFETY) & set(benchmarks.values()):
            found = places(points, axis, benchmarks)
            if any(p.point.final for p in found):
                left_out = [p.label for p in points if p not in [f.point for f in found]]
                charts.append(_draw(found, left_out, f"tradeoff_{axis}", label, short, direction))
    return charts


def places(points: Sequence[Point], axis: Axis, benchmarks: Mapping[str, Axis]) -> list[Place]:
    safety, other = axes_mean(SAFETY, benchmarks), axes_mean([axis], benchmarks)
    found = []
    for point in points:
        x, y = point.mean(other), point.mean(safety)
        if x is not None and y is not None:
            pairs = [(a, b) for m in point.models if (a := other(m)) is not None and (b := safety(m)) is not None]
            found.append(Place(point, x, y, tuple((a.value, b.value) for a, b in pairs)))
    return found


def front(found: Sequence[Place], direction: float) -> list[Place]:
    """The cells that no other cell beats on both, from best to worst on the other axis."""
    cells = [p for p in found if p.point.final]
    return [cells[i] for i in pareto([(direction * p.x.value, p.y.value) for p in cells])]


def looks_of(points: Sequence[Point]) -> tuple[str, str]:
    """The settings that colour and shape stand for; empty where nothing is left for it to say."""
    names = list(dict.fromkeys(n for p in points if p.final for n in p.settings))
    wanted: tuple[str, ...] = ("safety_tune", "adaptation")
    preferred = [n for n in wanted if n in names]
    colour = (preferred or [n for n in names if n != "merge"] or names or [""])[0]
    shape = next((n for n in ("merge", *names) if n in names and n != colour), "")
    return colour, shape


def _draw(found: Sequence[Place], left_out: Sequence[str], name: str, label: str, short: str, direction: float) -> Chart:
    colour, shape = looks_of([p.point for p in found])
    colours = _ranks(found, colour, SERIES)
    markers = _ranks(found, shape, MARKERS)
    titles: dict[str, str] = {}
    best = front(found, direction)
    with looks():
        figure, axes = new_figure(4.2, 4.1)
        _front_line(axes, best, direction)
        for i, place in enumerate(found):
            point = place.point
            paint = colours[point.settings.get(colour, "")] if point.final else MUTED
            marker = markers[point.settings.get(shape, "")] if point.final else "o"
            if place.x.seeds > 1 or place.y.seeds > 1:
                xs, ys = zip(*place.seeds, strict=True)
                axes.plot(xs, ys, marker, color=paint, markersize=2.6, alpha=0.45, markeredgewidth=0, zorder=2)
            axes.plot([place.x.low, place.x.high], [place.y.value] * 2, color=paint, linewidth=0.9, alpha=0.55, zorder=3)
            axes.plot([place.x.value] * 2, [place.y.low, place.y.high], color=paint, linewidth=0.9, alpha=0.55, zorder=3)
            axes.plot(
                [place.x.value], [place.y.value], marker, color=paint if point.final else PAPER,
                markeredgecolor=INK if place in best else PAPER if point.final else MUTED,
                markeredgewidth=1.3 if place in best else 0.8, markersize=7.5 if place in best else 6.0, zorder=5, gid=f"p{i}",
            )  # fmt: skip
            role = "" if point.final else ", on the way"
            titles[f"p{i}"] = f"{point.label}{role}\nASR {place.y}\n{short} {place.x}"
        _limits(axes, found)
        axes.set_xlabel(label)
        axes.set_ylabel("mean attack success rate (less is better)")
        corner = (0.0, 0.0) if direction > 0 else (1.0, 0.0)
        axes.annotate(
            "better ↙" if direction > 0 else "better ↘", corner, xycoords="axes fraction", color=MUTED, fontsize=7.5,
            xytext=(5 if direction > 0 else -5, 5), textcoords="offset points", ha="left" if direction > 0 else "right",
        )  # fmt: skip
        _legend(figure, found, (colour, colours), (shape, markers))
        settle(figure)
        _labels(axes, [*best, *(p for p in found if p not in best)][:MAX_LABELS], found)
    several = max((p.x.seeds for p in found), default=1) > 1
    spread = "means over seeds ± standard deviation, small marks single seeds" if several else "bars 95 % intervals"
    caption = (
        f"Mean ASR over the safety axes against {short}; {spread}. Outlined marks and the stepped line: the Pareto front of "
        "the cells, those that no other cell beats on both."
    )
    caption += unsaid([p.point for p in found])
    if left_out:
        caption += f" Not drawn, since not asked or not there on every benchmark: {_listed(left_out)}."
    return Chart(name, f"Safety against {short}", caption, figure, titles)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _ranks(found: Sequence[Place], name: str, marks: Sequence[str]) -> dict[str, str]:
    values = dict.fromkeys(p.point.settings.get(name, "") for p in found if p.point.final)
    return {value: marks[i % len(marks)] for i, value in enumerate(values)}


def _front_line(axes: Any, best: Sequence[Place], direction: float) -> None:
    if len(best) > 1:
        xs, ys = [p.x.value for p in best], [p.y.value for p in best]
        axes.step(xs, ys, where="post", color=MUTED, linewidth=1.0, linestyle=(0, (4, 2.5)), zorder=1)


def _limits(axes: Any, found: Sequence[Place]) -> None:
    """Room for intervals and a little air; never less than a tenth, so that noise does not fill the plot."""
    for low, high, set_limits in (
        (min(p.x.low for p in found), max(p.x.high for p in found), axes.set_xlim),
        (min(p.y.low for p in found), max(p.y.high for p in found), axes.set_ylim),
    ):
        air = max(0.1 - (high - low), 0.0) / 2 + 0.07 * max(high - low, 0.1)
        set_limits(max(low - air, -0.04), min(high + air, 1.04))


def _legend(figure: Any, found: Sequence[Place], *kinds: tuple[str, Mapping[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for i, (name, marks) in enumerate(kinds):
        if name:
            for value, mark in marks.items():
                look: dict[str, Any] = {"color": mark, "marker": "o"} if i == 0 else {"color": MUTED, "marker": mark}
                text = value if name in ("safety_tune", "merge", "adaptation") else f"{name.rpartition('.')[2]} {value}"
                text = {"safety_tune": "untuned", "merge": "unmerged"}.get(name, text) if value == "none" else text
                handles.append(Line2D([], [], linestyle="", markersize=5, label=_short(text), **look))
    if any(not p.point.final for p in found):
        look = {"color": PAPER, "marker": "o", "markeredgecolor": MUTED}
        handles.append(Line2D([], [], linestyle="", markersize=5, label="on the way", **look))
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=4, fontsize=7.2, handletextpad=0.1, columnspacing=1.0,
        )  # fmt: skip


def _short(text: str, limit: int = 18) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _labels(axes: Any, named: Sequence[Place], found: Sequence[Place]) -> None:
    """Names beside the marks, each where it covers least of the marks and names that are there already."""
    here = axes.transData.transform
    marks = [here((p.x.value, p.y.value)) for p in found]
    inside = axes.get_window_extent()
    unit = axes.figure.dpi / 72
    taken: list[Sequence[float]] = [(x - 7, y - 7, x + 7, y + 7) for x, y in marks]
    for p in found:  # bars may be crossed where there is no other room, so they count for little
        (left, y), (right, _) = here((p.x.low, p.y.value)), here((p.x.high, p.y.value))
        (x, low), (_, high) = here((p.x.value, p.y.low)), here((p.x.value, p.y.high))
        taken += [(left, y - 1.5, right, y + 1.5), (x - 1.5, low, x + 1.5, high)]
    for place in named:
        text = _short(place.point.label, 24)
        width, height = 4.2 * unit * len(text), 8.5 * unit
        x, y = here((place.x.value, place.y.value))
        best: tuple[float, int, int, str, tuple[float, float, float, float]] | None = None
        for dx, dy, side in OFFSETS:
            left = x + dx * unit - {"left": 0, "right": width, "center": width / 2}[side]
            box = (left, y + dy * unit - height / 2, left + width, y + dy * unit + height / 2)
            outside = (
                max(0.0, inside.x0 - box[0])
                + max(0.0, box[2] - inside.x1)
                + max(0.0, inside.y0 - box[1])
                + max(0.0, box[3] - inside.y1)
            )
            cost = sum(_overlap(box, other) for other in taken) + 50 * outside + 0.5 * (abs(dy) + (side == "center"))
            if best is None or cost < best[0]:
                best = (cost, dx, dy, side, box)
        if best is None or best[0] > 0.6 * width * height:
            continue  # a name nobody can read says less than the title on hover
        taken.append(best[4])
        axes.annotate(
            text, (place.x.value, place.y.value), xytext=best[1:3], textcoords="offset points", ha=best[3], va="center",
            fontsize=7.2, color=INK, zorder=6, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
        ).set_in_layout(False)  # fmt: skip


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
