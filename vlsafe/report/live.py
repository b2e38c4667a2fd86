"""The live view of a plan: a few lines that keep themselves up to date on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlsafe.plan import Plan
from vlsafe.report.text import printable
from vlsafe.stage import STAGE_KINDS

DRAW_SECONDS = 0.5
PLAIN_SECONDS = 15.0  # between two lines about a stage that goes on
ENDED = ("done", "found", "exists")


class TimeLeft(NamedTuple):
    """`complete` is false while some kind of stage has never run, so that its time is not in `seconds`."""

    seconds: float
    complete: bool


class StageState(Protocol):
    state: str
    started: float | None
    done: int
    total: int
    note: str
    seconds: float | None
    error: str


class HasStages(Protocol):
    @property
    def stages(self) -> Mapping[str, Any]: ...


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class View:
    """Call it with the outcome as it changes; use it as a context."""

    def __init__(
        self, plan: Plan, console: Console, live: bool, time_left: Callable[[Mapping[str, Any]], TimeLeft] | None
    ) -> None:
        self.plan, self.console, self.time_left = plan, console, time_left
        self.began = time.monotonic()
        self.live = Live(console=console, refresh_per_second=4, transient=True) if live and console.is_terminal else None
        self.said: dict[str, tuple[str, float]] = {}
        self.evaluated: set[str] = set()
        self.drawn = 0.0

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, outcome: HasStages) -> None:
        self._say(outcome.stages)
        now = time.monotonic()
        if self.live and now - self.drawn >= DRAW_SECONDS:
            self.drawn = now
            self.live.update(self.render(outcome.stages))

    def render(self, stages: Mapping[str, StageState]) -> Group:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(width=20)
        table.add_column(justify="right", no_wrap=True)
        for kind in STAGE_KINDS:
            states = [stages[id].state for id, s in self.plan.stages.items() if s.kind == kind]
            if states:
                ended, failed = sum(s in ENDED for s in states), sum(s in ("failed", "skipped") for s in states)
                bad = Text(f"  {failed} failed", style="red") if failed else Text("")
                table.add_row(
                    kind, ProgressBar(total=len(states), completed=ended, width=20), Text(f"{ended}/{len(states)}") + bad
                )
        now = Table.grid(padding=(0, 1), expand=True)
        now.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
        now.add_column(ratio=2, no_wrap=True, overflow="ellipsis", style="dim")
        now.add_column(width=12)
        now.add_column(justify="right", no_wrap=True, width=11)
        for id, state in stages.items():
            if state.state in ("running", "waiting"):
                now.add_row(
                    printable(self.plan.stages[id].label),
                    printable(state.note) if state.state == "running" else "waiting: " + printable(state.note),
                    ProgressBar(total=state.total or 1, completed=state.done, width=12, pulse=not state.total),
                    self._stage_left(state),
                )
        return Group(self._headline(stages), table, now)

    def _headline(self, stages: Mapping[str, StageState]) -> Text:
        so_far = f"{clock(time.monotonic() - self.began)} so far"
        if self.time_left is None:
            return Text(so_far, style="cyan")
        left = self.time_left(stages)
        ahead = f"about {clock(left.seconds)} left" if left.complete else f"at least {clock(left.seconds)} left"
        return Text(f"{so_far}, {ahead}", style="cyan")

    @staticmethod
    def _stage_left(state: StageState) -> str:
        if not (state.started and state.done and state.total):
            return ""
        return f"{clock((time.time() - state.started) * (state.total / state.done - 1))} left"

    def _say(self, stages: Mapping[str, StageState]) -> None:
        """One line when a stage starts, ends or fails; without a live view also one now and then while it goes on."""
        now = time.monotonic()
        for id, state in stages.items():
            before, at = self.said.get(id, ("pending", 0.0))
            if state.state == before and state.state != "running":
                continue  # nearly all of them, ten times a second
            stage = self.plan.stages[id]
            label = printable(stage.label)
            at_time = f"[{clock(now - self.began):>7}]"
            quiet = stage.kind in ("generate", "judge")
            if state.state != before:
                self.said[id] = (state.state, now)
                if state.state == "done" and not quiet:
                    self._line(f"{at_time} {stage.kind:<11} {label}  done in {clock(state.seconds or 0)}")
                elif state.state == "failed":
                    self._line(f"{at_time} {stage.kind:<11} {label}  FAILED: {printable(state.error)}", "red")
                elif state.state == "running" and not quiet and not self.live:
                    self._line(f"{at_time} {stage.kind:<11} {label}  started")
                elif state.state == "done" and stage.kind == "judge" and self._evaluated(id, stages):
                    model = label.split(" · ")[0]
                    self._line(f"{at_time} {'evaluation':<11} {model}  done")
            elif state.state == "running" and not self.live and now - at > PLAIN_SECONDS and state.total:
                self.said[id] = (state.state, now)
                self._line(f"{at_time} {stage.kind:<11} {label}  {state.done}/{state.total} {printable(state.note)}")

    def _evaluated(self, judge: str, stages: Mapping[str, StageState]) -> bool:
        """True once for each model: when the last of its judge stages has ended."""
        model = self._model_of(judge)
        if model in self.evaluated:
            return False
        ended = all(
            stages[i].state in (*ENDED, "failed")
            for i, s in self.plan.stages.items()
            if s.kind == "judge" and self._model_of(i) == model
        )
        if ended:
            self.evaluated.add(model)
        return ended

    def _model_of(self, judge: str) -> str:
        return self.plan.stages[self.plan.stages[judge].parents["responses"]].parents["model"]

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)
