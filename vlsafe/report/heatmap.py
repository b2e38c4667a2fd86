"""The heat map over the grid: models by benchmarks, coloured by how far each is from ideal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import BETTER, headline
from vlsafe.report.figures import Chart, looks, new_figure, settle
from vlsafe.report.grid import AXIS_TITLES, METRIC_TITLES
from vlsafe.report.points import Estimate, Model, Point, unsaid
from vlsafe.report.svg import GRID, INK, LEVELS, MUTED, PAPER, heat_colour
from vlsafe.report.text import printable

ROW, HEAD = 0.215, 1.15  # inches


def heat_map(points: Sequence[Point], benchmarks: Mapping[str, Axis]) -> Chart | None:
    """None where there is nothing to show."""
    if not points or not benchmarks:
        return None
    names = [_short(p.label, 34) for p in points]
    titles: dict[str, str] = {}
    split = sum(not p.final for p in points)  # references first; a gap before the cells
    gap = 0.45 if 0 < split < len(points) else 0.0
    columns = _columns(benchmarks)
    rows = len(points) + gap
    with looks():
        figure, axes = new_figure(6.9, ROW * rows + HEAD + 0.55)
        for r, point in enumerate(points):
            y = r + (gap if r >= split else 0.0)
            for (benchmark, axis), x in zip(benchmarks.items(), columns, strict=True):
                gid = f"r{r}b{list(benchmarks).index(benchmark)}"
                titles[gid] = _entry(axes, point, benchmark, axis, x, y, gid)
        ticks = [r + (gap if r >= split else 0.0) + 0.5 for r in range(len(points))]
        axes.set_yticks(ticks, names)
        axes.set_xticks([x + 0.5 for x in columns], [_short(printable(b), 26) for b in benchmarks], rotation=32, ha="left")
        axes.xaxis.tick_top()
        axes.set_xlim(0, columns[-1] + 1)
        axes.set_ylim(rows, 0)
        axes.grid(False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for axis in dict.fromkeys(benchmarks.values()):
            own = [x for (b, a), x in zip(benchmarks.items(), columns, strict=True) if a == axis]
            metric = headline(axis)
            arrow = "↓" if BETTER[metric] == "lower" else "↑"
            axes.text(
                (own[0] + own[-1] + 1) / 2, rows + 0.35, f"{AXIS_TITLES[axis]}\n{METRIC_TITLES[metric]} {arrow}",
                ha="center", va="top", color=MUTED, fontsize=7,
            )  # fmt: skip
        _scale(axes)
        settle(figure)
    several = max((len(p.models) for p in points), default=1) > 1
    caption = (
        "Means over seeds. " if several else ""
    ) + "Figures are the benchmark's own metric; the colour says how far it is from ideal: ASR, refusal rate, 1 − accuracy."
    caption += unsaid(points)
    return Chart("heatmap", "The grid at a glance", caption, figure, titles, least=620)


def _columns(benchmarks: Mapping[str, Axis]) -> list[float]:
    """Left edges: a column each, with a little room between axes."""
    edges, at, before = [], 0.0, None
    for axis in benchmarks.values():
        at += 0.25 if before not in (None, axis) else 0.0
        edges.append(at)
        at, before = at + 1, axis
    return edges


def badness(axis: Axis, value: float) -> float:
    return value if BETTER[headline(axis)] == "lower" else 1 - value


def level(share: float) -> int:
    return max(0, min(LEVELS - 1, round(share * (LEVELS - 1))))


def _entry(axes: Any, point: Point, benchmark: str, axis: Axis, x: float, y: float, gid: str) -> str:
    """Draws one square; what it says on hover."""
    from matplotlib.patches import Rectangle

    def own(model: Model) -> Estimate | None:
        return model.estimate(benchmark)

    estimate = point.mean(own)
    if estimate is None:
        words = {m.scores[benchmark].result.status for m in point.models if benchmark in m.scores}
        word = next((w for w in ("failed", "skipped", "missing", "done") if w in words), "")
        text = {"": "–", "done": "n=0", "missing": "…"}.get(word, word)
        axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=PAPER, edgecolor=GRID, linewidth=0.7, gid=gid))
        axes.text(x + 0.5, y + 0.53, text, ha="center", va="center", color=MUTED, fontsize=7)
        return f"{point.label} · {printable(benchmark)}: {word or 'not asked'}"
    at = level(badness(axis, estimate.value))
    square = Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, facecolor=heat_colour(at), linewidth=0, gid=gid)
    axes.add_patch(square)
    # The page gives figures on the dark half of the scale the colour of paper, in both of its themes.
    axes.text(
        x + 0.5, y + 0.53, f"{estimate.value:.2f}", ha="center", va="center", fontsize=7.2,
        color=PAPER if at > 0.66 * LEVELS else INK,
    )  # fmt: skip
    return f"{point.label} · {printable(benchmark)}: {estimate}"


def _scale(axes: Any) -> None:
    """The scale beside the squares, below the slanted names, which need that room anyway."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ScalarMappable(Normalize(0, 1), ListedColormap([heat_colour(i) for i in range(LEVELS)]))
    rows = axes.get_ylim()[0]
    height = min(6.0, rows - 1.2) / rows
    beside = axes.inset_axes((1.03, (1 - height) / 2, 0.022, height))
    axes.figure.colorbar(colours, cax=beside, ticks=[]).outline.set_visible(False)
    beside.set_title("worst", fontsize=6.5, color=MUTED, pad=3)
    beside.set_xlabel("ideal", fontsize=6.5, color=MUTED, labelpad=3)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
