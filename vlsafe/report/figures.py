"""What all figures share: their looks, the inline form for the page, and SVG, PDF and PNG files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlsafe.files import write_atomic
from vlsafe.report.svg import GRID, INK, MUTED, inline

FORMATS = ("svg", "pdf", "png")
RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,  # a name with a dollar sign is a name
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "vlsafe",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Chart:
    """A figure with what is said of it. `titles` are shown on hover, by gid; `least` is the width in pixels below which the
    page lets it scroll rather than shrink."""

    name: str
    title: str
    caption: str
    figure: Any
    titles: Mapping[str, str] = field(default_factory=dict)
    least: int = 0

    @cached_property
    def svg(self) -> str:
        """As a file has it, on no ground, so that it fits any page."""
        text = io.StringIO()
        with looks():
            self.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        return text.getvalue()

    def inline(self) -> str:
        return inline(self.svg, self.name, f"{self.title}. {self.caption}", self.titles)

    def save(self, folder: Path) -> list[Path]:
        """The figure as SVG, PDF and PNG: the same bytes for the same figure."""
        folder.mkdir(parents=True, exist_ok=True)
        svg, pdf, png = (folder / f"{self.name}.{form}" for form in FORMATS)
        write_atomic(svg, self.svg)
        with looks():
            self.figure.savefig(pdf, format="pdf", facecolor="white", metadata={"CreationDate": None})
            self.figure.savefig(png, format="png", facecolor="white")
        return [svg, pdf, png]


@contextmanager
def looks() -> Iterator[None]:
    """matplotlib with our settings; it says nothing of fonts that lack a sign, nor of a cache it had to make elsewhere."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    with matplotlib.rc_context(dict(RC)), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def new_figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    """A figure of inches and its axes; no global state, so nothing has to be closed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**options)


def settle(figure: Any) -> None:
    """Lays the figure out, once for all its formats."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
