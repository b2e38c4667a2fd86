"""The group around the grid that has one option yet: its `none` is a component like any other."""

from __future__ import annotations

from dataclasses import dataclass

from vlsafe.registry import Component, register


@register("analysis", "none")
@dataclass(frozen=True)
class NoAnalysis(Component):
    """Nothing is computed beyond the benchmarks."""
