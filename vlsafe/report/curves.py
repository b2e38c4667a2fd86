"""Curves of safety during adaptation: checkpoints by step, the finished model as the last point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import BETTER, headline
from vlsafe.report.aggregate import Setting, making, seeds
from vlsafe.report.figures import Chart, looks, new_figure, settle
from vlsafe.report.grid import AXIS_TITLES, METRIC_TITLES
from vlsafe.report.points import Estimate, estimate_of, judge, mean_over_seeds, part_of
from vlsafe.report.results import Scored
from vlsafe.report.svg import SERIES
from vlsafe.report.text import printable

STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")
END = None  # the step of the finished model


@dataclass(frozen=True)
class Curve:
    """One benchmark during one adaptation; `seeds` has one run of (step, estimate) for each seed, the end last."""

    benchmark: str
    adaptation: str  # and whatever else tells it from others: what it was tuned by before, ...
    seeds: tuple[Mapping[int | None, Estimate], ...]
    end: int | None = None  # at which step the finished model lies

    def mean(self) -> dict[int | None, Estimate]:
        steps = dict.fromkeys(step for run in self.seeds for step in run)
        return {step: mean_over_seeds([run[step] for run in self.seeds if step in run]) for step in _ordered(steps)}


def curves(scored: Iterable[Scored]) -> dict[Axis, list[Curve]]:
    """Curves by axis. Only adaptations with a checkpoint have one; models that cells share are taken once."""
    adapted = [s for s in scored if s.result.role == "adapted"]
    kept = {s.result.cell for s in adapted if s.result.step is not None}
    adapted = [s for s in adapted if s.result.cell in kept]
    made_by = [dict(making(s.result)) for s in adapted]
    names = [n for n in dict.fromkeys(n for made in made_by for n in made) if len({made.get(n) for made in made_by}) > 1]
    runs: dict[tuple[Axis, str, str], dict[tuple[Setting, ...], dict[int | None, Estimate]]] = {}
    ends: dict[tuple[Axis, str, str], int | None] = {}
    several = len({judge(s.result) for s in adapted}) > 1
    for s in adapted:
        r = s.result
        estimate = estimate_of(s.headline)
        if estimate is None:
            continue
        made = dict(making(r))
        parts = [part_of(n, made[n]) for n in names if n in made]
        at = (r.axis, r.benchmark, " · ".join(parts + ([judge(r)] if several else [])))
        runs.setdefault(at, {}).setdefault(seeds(r), {})[r.step] = estimate
        ends[at] = r.last_step
    found: dict[Axis, list[Curve]] = {}
    for axis in get_args(Axis):
        own = [Curve(at[1], at[2], tuple(by_seed.values()), ends[at]) for at, by_seed in runs.items() if at[0] == axis]
        if own:
            found[axis] = own
    return found


def adaptation_charts(scored: Iterable[Scored]) -> list[Chart]:
    """A small chart for each axis; none where the sweep kept no checkpoints."""
    return [_draw(axis, own) for axis, own in curves(scored).items()]


def _ordered(steps: Iterable[int | None]) -> list[int | None]:
    numbers = sorted(s for s in steps if s is not None)
    return [*numbers, *([END] if END in set(steps) else [])]


def _draw(axis: Axis, own: Sequence[Curve]) -> Chart:
    benchmarks = list(dict.fromkeys(c.benchmark for c in own))
    adaptations = list(dict.fromkeys(c.adaptation for c in own))
    numbers = sorted({s for c in own for run in c.seeds for s in run if s is not None})
    gap = numbers[-1] - numbers[-2] if len(numbers) > 1 else max(numbers[-1], 1)
    after = numbers[-1] + gap  # where it is not known how many steps the finished model had
    ends = {curve.end or after for curve in own if any(None in run for run in curve.seeds)}
    titles: dict[str, str] = {}
    metric = headline(axis)
    better = BETTER[metric]
    with looks():
        figure, axes = new_figure(4.2, 3.1)
        for i, curve in enumerate(own):
            end = curve.end or after
            look = {"color": SERIES[benchmarks.index(curve.benchmark) % len(SERIES)]}
            style = STYLES[adaptations.index(curve.adaptation) % len(STYLES)]
            if len(curve.seeds) > 1:
                for run in curve.seeds:
                    steps = _ordered(run)
                    xs = [end if s is None else s for s in steps]
                    axes.plot(xs, [run[s].value for s in steps], linewidth=0.6, alpha=0.4, **look)
            mean = curve.mean()
            xs = [end if s is None else s for s in mean]
            marker = MARKERS[benchmarks.index(curve.benchmark) % len(MARKERS)]
            label = printable(curve.benchmark) + (f", {curve.adaptation}" if len(adaptations) > 1 else "")
            axes.plot(xs, [e.value for e in mean.values()], linestyle=style, linewidth=1.4, label=label, zorder=3, **look)
            for j, (x, (step, e)) in enumerate(zip(xs, mean.items(), strict=True)):
                axes.plot([x, x], [e.low, e.high], linewidth=0.9, alpha=0.5, zorder=2, **look)
                axes.plot([x], [e.value], marker, markersize=4, zorder=4, gid=f"c{i}s{j}", **look)
                titles[f"c{i}s{j}"] = f"{label}\n{'the finished model' if step is None else f'step {step}'}: {e}"
        shown = [n for n in numbers[:: max(1, len(numbers) // 5)] if n not in ends]
        said = ["end"] if len(ends) == 1 else [f"{end}, end" for end in sorted(ends)]
        axes.set_xticks([*shown, *sorted(ends)], [*map(str, shown), *said])
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("step of adaptation")
        axes.set_ylabel(f"{METRIC_TITLES[metric]} ({'less' if better == 'lower' else 'more'} is better)")
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.2)
        settle(figure)
    several = any(len(c.seeds) > 1 for c in own)
    caption = "Means over seeds ± standard deviation, thin lines single seeds." if several else "Bars are 95 % intervals."
    caption += " The last point is the finished model." if ends else ""
    return Chart(f"adaptation_{axis}", f"{AXIS_TITLES[axis].capitalize()} during adaptation", caption, figure, titles)
