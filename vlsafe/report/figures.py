"""What all figures share: their looks, the inline form for the page, and SVG, PDF and PNG files."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsafe.report.svg import GRID, INK, MUTED, inline

FORMATS = ("svg", "pdf", "png")
RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
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

    def inline(self) -> str:
        return inline(self._svg(transparent=True), self.name, f"{self.title}. {self.caption}", self.titles)

    def save(self, folder: Path) -> list[Path]:
        """The figure as SVG, PDF and PNG, the same bytes for the same figure."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.{form}" for form in FORMATS]
        nothing = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
        with looks():
            for path, form in zip(paths, FORMATS, strict=True):
                self.figure.savefig(path, format=form, facecolor="white", metadata=nothing[form])
        return paths

    def _svg(self, transparent: bool) -> str:
        text = io.StringIO()
        with looks():
            self.figure.savefig(text, format="svg", transparent=transparent, metadata={"Date": None})
        return text.getvalue()


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
