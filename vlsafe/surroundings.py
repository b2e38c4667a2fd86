"""The groups around the grid that have one option yet: each `none` is a component like any other."""

from __future__ import annotations

from dataclasses import dataclass

from vlsafe.registry import Component, register


@register("deepspeed", "none")
@dataclass(frozen=True)
class NoDeepSpeed(Component):
    """Training runs in one process, without DeepSpeed."""


@register("analysis", "none")
@dataclass(frozen=True)
class NoAnalysis(Component):
    """Nothing is computed beyond the benchmarks."""
