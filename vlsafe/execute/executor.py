"""Runs a plan on this machine: tasks start as soon as their parents are there and the machine has room.

A stage that fails takes its descendants with it and nothing else. A stop request lets the running stages stop at a checkpoint.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from vlsafe.cells import RunSettings
from vlsafe.errors import StoreError
from vlsafe.execute.events import Event, EventReader
from vlsafe.execute.pool import Pool
from vlsafe.execute.survey import Survey
from vlsafe.execute.task import Task, group_stages, order_of
from vlsafe.lock import process_start
from vlsafe.plan import Plan, Stage
from vlsafe.provenance import cpu_count
from vlsafe.stage import Execution
from vlsafe.store import Store

MAX_JOBS = 8  # by default; each worker holds a model
POLL_SECONDS = 0.1
STOP_SECONDS = (
    30.0  # for running stages to reach a checkpoint after Ctrl-C, before they are killed (nothing is lost then either)
)
ENDED = ("done", "found", "failed", "skipped")


@dataclass
class Progress:
    """What is known of one stage while the plan runs."""

    state: str  # exists, pending, or one of events.State
    started: float | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    seconds: float | None = None
    error: str = ""
    log: str = ""

    def apply(self, event: Event) -> None:
        self.state = event["state"]
        if event["state"] == "running" and self.started is None:
            self.started = event["time"]
        self.done, self.total = event.get("done", self.done), event.get("total", self.total)
        self.note = event.get("note", self.note)
        self.seconds, self.error = event.get("seconds", self.seconds), event.get("error", self.error)


@dataclass
class Outcome:
    stages: dict[str, Progress]
    interrupted: bool = False
    seconds: float = 0.0

    def failed(self) -> list[str]:
        return [id for id, p in self.stages.items() if p.state == "failed"]


@dataclass
class Running:
    process: BaseProcess
    reader: EventReader
    stages: tuple[str, ...]
    threads: int
    log: str


@dataclass
class Executor:
    plan: Plan
    store: Store
    folder: Path  # the sweep's: tasks, events and logs go there
    run: RunSettings
    found: Survey
    on_change: Callable[[Outcome], None] = lambda outcome: None
    pool: Pool = field(default_factory=Pool)
    cores: int = field(default_factory=cpu_count)

    @property
    def work(self) -> Path:
        """Tasks and events of this process: another one may run the same sweep."""
        return self.folder / "work" / str(os.getpid())

    @property
    def jobs(self) -> int:
        return self.run.jobs or min(self.cores, MAX_JOBS)

    def threads(self, stage: Stage) -> int:
        """CPU threads, always the same for the same settings: float sums depend on them."""
        if self.run.threads is not None:
            return self.run.threads
        return min(self.cores, 2) if stage.kind in ("model", "adaptation") else 1

    def groups(self) -> list[tuple[str, ...]]:
        return group_stages(self.plan, self.found.to_run)

    def execute(self) -> Outcome:
        started = time.monotonic()
        clear_dead(self.folder / "work")
        stages = {id: Progress("pending" if id in self.found.to_run else "exists") for id in self.plan.stages}
        outcome = Outcome(stages)
        pending = self._by_importance(self.groups())
        running: list[Running] = []
        stop = _StopRequest()
        with stop:
            while pending or running:
                if stop.requested and not outcome.interrupted:
                    outcome.interrupted = True
                    self._stop(running, outcome)
                    break
                pending = self._start_ready(pending, running, outcome)
                self.on_change(outcome)
                if running:
                    multiprocessing.connection.wait([r.process.sentinel for r in running], timeout=POLL_SECONDS)
                for worker in list(running):
                    ended = not worker.process.is_alive()
                    self._read(worker, outcome)
                    if ended:
                        running.remove(worker)
                        pending += self._settle(worker, outcome)
                pending = self._skip_orphans(pending, outcome)
        outcome.seconds = time.monotonic() - started
        self.on_change(outcome)
        return outcome

    def _by_importance(self, groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """What most other stages wait for comes first."""
        return sorted(groups, key=lambda group: -len(self.plan.below(group)))

    def _start_ready(self, pending: list[tuple[str, ...]], running: list[Running], outcome: Outcome) -> list[tuple[str, ...]]:
        left = []
        for group in pending:
            threads = max(self.threads(self.plan.stages[id]) for id in group)
            room = len(running) < self.jobs and sum(r.threads for r in running) + threads <= self.cores
            outside = {p for id in group for p in self.plan.stages[id].parents.values()} - set(group)
            ready = all(outcome.stages[p].state in ("exists", "done", "found") for p in outside)
            if ready and (room or not running):
                running.append(self._start(group, threads, outcome))
            else:
                left.append(group)
        return left

    def _start(self, group: tuple[str, ...], threads: int, outcome: Outcome) -> Running:
        named = self.plan.stages[group[-1] if self.plan.stages[group[0]].step is not None else group[0]]
        name = f"{named.kind}-{named.key}"
        events, log = self.work / f"{name}.events.jsonl", self.folder / "logs" / f"{name}.log"
        events.unlink(missing_ok=True)
        execution = Execution(threads, self.run.device, self.run.checkpoint_seconds)
        orders = tuple(order_of(self.plan.stages[id]) for id in group)
        task = Task(name, orders, str(self.store.root), execution, str(events), str(log))
        task.save(self.work / f"{name}.task.json")
        for id in group:
            outcome.stages[id].log = str(log)
        process = self.pool.start(task, self.work / f"{name}.task.json")
        return Running(process, EventReader(events), group, threads, str(log))

    def _read(self, worker: Running, outcome: Outcome) -> None:
        for event in worker.reader.new():
            outcome.stages[event["stage"]].apply(event)

    def _settle(self, worker: Running, outcome: Outcome) -> list[tuple[str, ...]]:
        """After a worker has ended: whatever it was killed in has failed, and what it had not begun is to be run again."""
        code = worker.process.exitcode
        for id in worker.stages:  # whatever became of its events, what is in the store is done
            if outcome.stages[id].state not in ENDED and self._in_store(id):
                outcome.stages[id].state = "found"
        left = [id for id in worker.stages if outcome.stages[id].state not in ENDED]
        hit = next((id for id in left if outcome.stages[id].state in ("running", "waiting")), left[0] if left else None)
        if hit is None:
            return []
        progress = outcome.stages[hit]
        progress.state, progress.error = "failed", _exit_reason(code)
        rest = tuple(id for id in left if id != hit)
        for id in rest:
            outcome.stages[id].state = "pending"
        return [rest] if rest else []

    def _in_store(self, id: str) -> bool:
        stage = self.plan.stages[id]
        try:
            return self.store.exists(stage.kind, stage.key, stage.version)
        except StoreError:
            return False

    def _skip_orphans(self, pending: list[tuple[str, ...]], outcome: Outcome) -> list[tuple[str, ...]]:
        """Takes out of `pending` what can't run any more because a parent failed."""
        bad = [id for id, p in outcome.stages.items() if p.state in ("failed", "skipped")]
        lost = self.plan.below(bad) if bad else set()
        kept = []
        for group in pending:
            for id in group:
                if id in lost:
                    outcome.stages[id].state = "skipped"
            alive = tuple(id for id in group if id not in lost)
            kept += [alive] if alive else []
        return kept

    def _stop(self, running: list[Running], outcome: Outcome) -> None:
        for worker in running:
            _signal(worker.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for worker in running:
            while worker.process.is_alive() and time.monotonic() < deadline:
                self._read(worker, outcome)
                self.on_change(outcome)
                worker.process.join(POLL_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            self._read(worker, outcome)
        for progress in outcome.stages.values():
            if progress.state in ("running", "waiting"):
                progress.state = "interrupted"


def clear_dead(work: Path) -> None:
    """Remove what processes that are gone left in a sweep's work folder."""
    for folder in work.iterdir() if work.is_dir() else []:
        if folder.name.isdigit() and process_start(int(folder.name)) is None:
            shutil.rmtree(folder, ignore_errors=True)


class _StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag; a second Ctrl-C kills at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _StopRequest:
        self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def _signal(process: BaseProcess, number: int) -> None:
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, number)


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f"the worker was ended by {name}{hint}"
    return f"the worker ended with status {code}; see its log"
