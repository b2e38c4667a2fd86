"""The page's figures as SVG: one for each finding that has claims, and one for the control."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import BETTER, Metric, headline
from vlsafe.files import write_atomic
from vlsafe.report.claims import Claim, Evidence
from vlsafe.report.claims.merging import ASR_MARGIN
from vlsafe.report.findings.study import Study
from vlsafe.report.grid import AXIS_TITLES, METRIC_TITLES
from vlsafe.report.text import printable

BEFORE, AFTER, INK, FAINT, GOOD = "#8a94a0", "#c2410c", "#1b2733", "#dfe5ea", "#e3f1e6"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#5f6b2f")
MARKERS = "osD^vP*X<>hp"
ROW, LEAST_HEIGHT = 0.17, 1.0  # inches: of a seed, and of a panel


Place = tuple[float, float]  # in the trade-off


@dataclass(frozen=True)
class Row:
    label: str
    seeds: list[Evidence]


def draw(study: Study, folder: Path) -> dict[str, Path]:
    """Figures by name: finding_1, ..., control; those without a figure to show are left out."""
    made: dict[str, Path] = {}
    dots = {
        "finding_1": (study.of(1), "base", "adapted"),
        "finding_2": (study.of(2), "adapted", "tuned"),
        "finding_4": (study.of(4), "one after the other", "at once"),
        "control": (study.control_claims, "base, or the main world", "control world"),
    }
    for name, (claims, before, after) in dots.items():
        panels = _panels(claims)
        if panels:
            made[name] = folder / f"{name}.svg"
            write_atomic(made[name], _dots(panels, before, after))
    if any(not outcome.missing for claim in study.of(5) for outcome in claim.outcomes):
        made["finding_5"] = folder / "finding_5.svg"
        write_atomic(made["finding_5"], _trade_off(study))
    return made


@contextmanager
def _figure(width: float, height: float, rows: int, columns: int, **options: Any) -> Iterator[tuple[Any, Any]]:
    import matplotlib
    from matplotlib.figure import Figure

    # The same input gives the same bytes; white paper, since a page may be dark.
    plain = {"svg.hashsalt": "vlsafe", "font.size": 9, "axes.edgecolor": INK, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(plain):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def _svg(figure: Any) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue().decode()


# Before and after, seed by seed


def _panels(claims: Sequence[Claim]) -> dict[Axis, list[Row]]:
    """By axis, a row for each claim's subject with one comparison a seed."""
    panels: dict[Axis, dict[str, dict[str, Evidence]]] = {}
    for claim in claims:
        label = claim.name.partition("/")[2]
        for e in claim.evidence:
            if e.difference is not None and not e.benchmark:
                panels.setdefault(e.axis, {}).setdefault(label, {}).setdefault(e.seed, e)
    return {axis: [Row(label, list(seeds.values())) for label, seeds in rows.items()] for axis, rows in panels.items()}


def _dots(panels: dict[Axis, list[Row]], before: str, after: str) -> str:
    rows = max(panels.values(), key=len)
    same = all([r.label for r in shown] == [r.label for r in rows] for shown in panels.values())
    height = max(LEAST_HEIGHT, sum(ROW * len(r.seeds) + 0.22 for r in rows)) + 0.95
    longest = max(len(r.label) for r in rows)
    width = 1.2 + 0.07 * longest + 2.5 * max(2, len(panels))
    with _figure(width, height, 1, len(panels)) as (figure, axes):
        for i, (axis, shown) in enumerate(panels.items()):
            ax = axes[0][i]
            at, ticks = 0.0, []
            for row in shown:
                for k, e in enumerate(row.seeds):
                    _compare(ax, e, at + k)
                ticks.append((at + (len(row.seeds) - 1) / 2, printable(row.label, 40)))
                at += len(row.seeds) + 1.2
            ax.set_yticks([y for y, _ in ticks], [label if i == 0 or not same else "" for _, label in ticks])
            ax.set_ylim(at - 1.2 + 0.2, -1.2)
            arrow = "lower is better" if BETTER[headline(axis)] == "lower" else "higher is better"
            ax.set_title(f"{METRIC_TITLES[headline(axis)]}, {AXIS_TITLES[axis]}", fontsize=9.5, loc="left", fontweight="bold")
            ax.set_xlabel(arrow, color=BEFORE)
            _clean(ax)
            ax.set_xlim(-0.03, 1.03)
            ax.tick_params(axis="y", length=0)
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], marker="o", color=BEFORE, markerfacecolor="white", label=f"{before}, each seed"),
            Line2D([], [], marker="o", color=AFTER, label=f"{after}, each seed (95 % intervals)"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
        return _svg(figure)


def _compare(ax: Any, e: Evidence, y: float) -> None:
    assert e.reference is not None
    assert e.value is not None
    ax.plot([e.reference.value, e.value.value], [y, y], color=FAINT, lw=5, solid_capstyle="round", zorder=1)
    for metric, colour, face in ((e.reference, BEFORE, "white"), (e.value, AFTER, AFTER)):
        ax.plot([metric.low, metric.high], [y, y], color=colour, lw=1.6, zorder=2)
        ax.plot([metric.value], [y], "o", color=colour, markerfacecolor=face, ms=4.5, zorder=3)


def _clean(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)


# Finding 5


def _trade_off(study: Study) -> str:
    """A panel for each tuned parent: pooled over-refusal against ASR pooled over both safety axes, means over seeds, with the
    range of the seeds. Green: what a merge would have to reach, were ASR judged by its mean."""
    claims = study.of(5)
    settings = list(dict.fromkeys(o.setting for c in claims for o in c.outcomes))
    looks = {s: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, s in enumerate(settings)}
    columns = min(3, len(claims))
    rows = -(-len(claims) // columns)
    height = 0.7 + 2.7 * rows + 0.22 * -(-len(settings) // (2 * columns))
    with _figure(1.6 + 3.1 * columns, height, rows, columns, sharex=True, sharey=True) as (figure, axes):
        for i in range(rows * columns):
            ax = axes[i // columns][i % columns]
            if i >= len(claims):
                ax.set_visible(False)
                continue
            _trade_off_panel(ax, claims[i], looks)
        shown = [ax.dataLim for ax in axes.flat if ax.has_data()]
        axes[0][0].set_xlim(-0.03, max(limits.x1 for limits in shown) + 0.04)
        axes[0][0].set_ylim(-0.03, max(limits.y1 for limits in shown) + 0.04)
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], marker="*", ms=11, ls="", color=INK, label="tuned parent")]
        handles += [Line2D([], [], marker=m, ls="", color=c, label=printable(s, 40)) for s, (c, m) in looks.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=8)
        return _svg(figure)


def _trade_off_panel(ax: Any, claim: Claim, looks: dict[str, tuple[str, str]]) -> None:
    from matplotlib.patches import Rectangle

    parents: dict[str, Place] = {}
    merges: dict[str, list[Place]] = {}
    for outcome in claim.outcomes:
        parent, merged = (_place([getattr(e, side) for e in outcome.evidence]) for side in ("reference", "value"))
        if parent and merged and not outcome.missing:
            parents[outcome.seed] = parent
            merges.setdefault(outcome.setting, []).append(merged)
    if parents:
        x, y = _middle(list(parents.values()))
        ax.add_patch(Rectangle((-0.03, -0.03), x + 0.03, y + ASR_MARGIN + 0.03, color=GOOD, zorder=0, lw=0))
        _spread(ax, list(parents.values()), INK, "*", 11)
    for setting, places in merges.items():
        _spread(ax, places, *looks[setting], 5.5)
    ax.set_title(printable(claim.name.partition("/")[2], 40), fontsize=9.5, loc="left", fontweight="bold")
    ax.set_xlabel("over-refusal, refused ← better")
    ax.set_ylabel("ASR, text and pictures ← better")
    ax.tick_params(labelbottom=True, labelleft=True)
    _clean(ax)
    ax.grid(axis="y", color=FAINT, lw=0.6)


def _place(metrics: Sequence[Metric | None]) -> Place | None:
    """(over-refusal, ASR pooled over the safety benchmarks) of one model."""
    rates: dict[str, list[Metric]] = {}
    for m in metrics:
        if m is not None and m.value is not None:
            rates.setdefault(m.name, []).append(m)
    if not {"refusal_rate", "asr"} <= set(rates):
        return None
    x, y = (sum((m.value or 0.0) * m.n for m in rates[n]) / sum(m.n for m in rates[n]) for n in ("refusal_rate", "asr"))
    return x, y


def _middle(places: Sequence[Place]) -> Place:
    return sum(x for x, _ in places) / len(places), sum(y for _, y in places) / len(places)


def _spread(ax: Any, places: Sequence[Place], colour: str, marker: str, size: float) -> None:
    """The mean, and bars over the range of the seeds."""
    x, y = _middle(places)
    xs, ys = [p[0] for p in places], [p[1] for p in places]
    ax.plot([min(xs), max(xs)], [y, y], color=colour, lw=1, alpha=0.6, zorder=2)
    ax.plot([x, x], [min(ys), max(ys)], color=colour, lw=1, alpha=0.6, zorder=2)
    ax.plot([x], [y], marker, color=colour, ms=size, zorder=3)
