"""How long a plan takes, and what of it is left, on this machine: from earlier manifests and from what ran so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from vlsafe.execute.executor import Executor
from vlsafe.execute.progress import ENDED
from vlsafe.execute.survey import on_the_way, wall_seconds
from vlsafe.report.live import TimeLeft


def wall(executor: Executor, seconds: Mapping[str, float | None]) -> float | None:
    """None while some stage has no estimate."""
    known = {id: s for id, s in seconds.items() if s is not None}
    if len(known) < len(seconds):
        return None
    return wall_seconds(executor.plan, executor.groups(), known, executor.needs, executor.machine)


def time_left(executor: Executor) -> Callable[[Mapping[str, Any]], TimeLeft]:
    """Seconds until the plan is through, from what ran so far and from earlier manifests."""

    def left(stages: Mapping[str, Any]) -> TimeLeft:
        seconds: dict[str, float] = {}
        complete = True
        rates: dict[str, list[float]] = {}
        for id, state in stages.items():
            if state.state == "done" and state.seconds is not None:
                stage = executor.plan.stages[id]
                rates.setdefault(stage.cost_class, []).append(state.seconds / stage.cost_units)
        for id in executor.found.to_run:
            state, stage = stages[id], executor.plan.stages[id]
            if state.state in ENDED or on_the_way(executor.plan, id, executor.found.to_run):
                seconds[id] = 0.0
                continue
            total = executor.found.seconds.get(id)
            if stage.cost_class in rates:
                total = sum(rates[stage.cost_class]) / len(rates[stage.cost_class]) * stage.cost_units
            if state.started is not None:
                spent = time.time() - state.started
                if state.done and state.total:
                    total = spent * state.total / state.done
                total = None if total is None else max(0.0, total - spent)
            complete &= total is not None
            seconds[id] = total or 0.0
        wall = wall_seconds(executor.plan, executor.groups(), seconds, executor.needs, executor.machine)
        return TimeLeft(wall, complete)

    return left
