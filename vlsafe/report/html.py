"""`report.html`: one file without a network reference, under a policy that lets only its own style and script work."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vlsafe.report import methods
from vlsafe.report.browser import Browser
from vlsafe.report.claims import Claim
from vlsafe.report.figures import Chart
from vlsafe.report.grid import AXIS_TITLES, METRIC_TITLES
from vlsafe.report.latex import Table
from vlsafe.report.layout import arrange
from vlsafe.report.points import SAFETY, Point, axes_mean, benchmarks, points
from vlsafe.report.source import Source
from vlsafe.report.svg import CLASSES, LEVELS
from vlsafe.report.text import visible
from vlsafe.stand_in.notice import notice_for

DARK = {
    "ink": "#e6ebf0", "muted": "#9fb0c0", "grid": "#2c3946", "paper": "#141b22",
    "c0": "#58b0e8", "c1": "#ff8a3d", "c2": "#2ec79a", "c3": "#e59cc6", "c4": "#f2b632", "c5": "#8fd0f5", "c6": "#b795cf",
    "c7": "#c6c64a",
}  # fmt: skip
DARK_HEAT = ((0x22, 0x2D, 0x38), (0xA8, 0x5A, 0x1E), (0xFF, 0xB2, 0x66))


@dataclass(frozen=True)
class Drawn:
    """A chart as the template needs it."""

    chart: Chart
    svg: Any  # Markup


@dataclass(frozen=True)
class Fact:
    """A line of the summary: what, and how much."""

    head: str
    value: str
    note: str


def render(
    source: Source,
    tradeoffs: Sequence[Chart],
    heat: Chart | None,
    adaptation: Sequence[Chart],
    tables: Sequence[Table],
    browser: Browser,
    claims: Sequence[Claim] = (),
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)

    environment = Environment(
        loader=PackageLoader("vlsafe.report"), autoescape=True, undefined=StrictUndefined, finalize=finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

    def drawn(charts: Sequence[Chart]) -> list[Drawn]:
        return [Drawn(chart, Markup(chart.inline())) for chart in charts]

    style, script = _asset("report.css") + theme_style(), _asset("report.js")
    shown = points(source.scored)
    return environment.get_template("report.html.j2").render(
        source=source, grid=arrange(source.scored), policy=policy(style, script),
        style=Markup(style), script=Markup(script),
        facts=summary(source, shown), tradeoffs=drawn(tradeoffs), heat=drawn([heat])[0] if heat else None,
        adaptation=drawn(adaptation), tables=tables, axis_titles=AXIS_TITLES, metric_titles=METRIC_TITLES, browser=browser,
        claims=list(claims), recipes=methods.recipes(source.stages), questions=methods.questions(source.stages),
        surroundings=methods.surroundings(source.stages), times=methods.times(source.stages),
        failed=[m for m in source.missing if m.state == "failed"],
        skipped=[m for m in source.missing if m.state == "skipped"],
        absent=[m for m in source.missing if m.state == "missing"],
        lost=sorted({cell for m in source.missing for cell in m.cells}),
        models=len({s.result.key for s in source.scored if s.result.status == "done"}),
        several_seeds=any(len(p.models) > 1 for p in shown), points=shown, notice=notice_for(source.sweep),
    )  # fmt: skip


def summary(source: Source, shown: Sequence[Point]) -> list[Fact]:
    """The best cell on each axis, and what the whole way cost or gave against the untouched model where that was asked."""
    asked = benchmarks(source.scored)
    cells = [p for p in shown if p.final]
    facts = []
    for head, axes, better in (
        ("Safest", SAFETY, min), ("Least over-refusal", ("over_refusal",), min), ("Most helpful", ("helpfulness",), max),
    ):  # fmt: skip
        present = [a for a in axes if a in asked.values()]
        found = [(e, p) for p in cells if (e := p.mean(axes_mean(present, asked))) is not None] if present else []
        if found:
            best = better(e.value for e, _ in found)
            names = [p.label for e, p in found if e.value == best]
            metric = {"Safest": "mean ASR", "Least over-refusal": "refusal rate", "Most helpful": "accuracy"}[head]
            estimate = next(e for e, _ in found if e.value == best)
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            facts.append(
                Fact(head, f"{estimate.value:.2f}", f"{metric} [{estimate.low:.2f}, {estimate.high:.2f}] of "
                     f"{', '.join(names[:2])}{more}")
            )  # fmt: skip
    return facts


def policy(style: str, script: str) -> str:
    """Nothing is loaded and nothing runs but what stands in the file."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; base-uri 'none'; "
        "form-action 'none'"
    )


def theme_style() -> str:
    """The figures' colours as variables, light and dark, and the classes by which inlined figures use them."""
    light = {name: colour for colour, name in CLASSES.items()}
    dark = dict(DARK) | {f"h{i}": _mixed(i) for i in range(LEVELS)}
    lines = [f":root{{{_variables(light)}}}", f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(dark)}}}}}"]
    for name in light:
        lines.append(f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}")
    return "\n".join(lines) + "\n"


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in colours.items())


def _mixed(level: int) -> str:
    at = 2 * level / (LEVELS - 1)
    low, high = (DARK_HEAT[0], DARK_HEAT[1]) if at <= 1 else (DARK_HEAT[1], DARK_HEAT[2])
    share = at if at <= 1 else at - 1
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def _asset(name: str) -> str:
    return (files("vlsafe.report") / "templates" / name).read_text(encoding="utf-8")
