"""Runs a plan on this machine: tasks start as soon as their parents are there and the machine has room.

A stage that fails takes its descendants with it and nothing else. A stop request lets the running stages stop at a checkpoint.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsafe.cells import RunSettings
from vlsafe.errors import StoreError
from vlsafe.execute.devices import Machine, Share, check_fits
from vlsafe.execute.events import EventReader
from vlsafe.execute.pool import Place, Pool, rank_log, reserve_port
from vlsafe.execute.progress import ENDED, Outcome, Progress
from vlsafe.execute.resources import Needs, check_training, execution_of, needs, together, visible_gpus
from vlsafe.execute.running import RankLog, Running
from vlsafe.execute.survey import Survey
from vlsafe.execute.task import Task, group_stages, order_of
from vlsafe.lock import process_start
from vlsafe.plan import Plan, Stage
from vlsafe.provenance import cpu_count
from vlsafe.stage import TRAINING_KINDS
from vlsafe.store import Store
from vlsafe.train.deepspeed import check_compiler

POLL_SECONDS = 0.1
STOP_SECONDS = (
    30.0  # for running stages to reach a checkpoint after Ctrl-C, before they are killed (nothing is lost then either)
)


@dataclass
class Executor:
    plan: Plan
    store: Store
    folder: Path  # the sweep's: tasks, events and logs go there
    run: RunSettings
    found: Survey
    deepspeed: Mapping[str, Any] | None = None  # the settings of that group; None: without it
    on_change: Callable[[Outcome], None] = lambda outcome: None
    pool: Pool = field(default_factory=Pool)
    cores: int = field(default_factory=cpu_count)
    gpus: list[str] = field(default_factory=visible_gpus)

    def __post_init__(self) -> None:
        self.machine = Machine(self.cores, self.gpus, self.run.jobs)

    @property
    def work(self) -> Path:
        """Tasks and events of this process: another one may run the same sweep."""
        return self.folder / "work" / str(os.getpid())

    def needs(self, stage: Stage) -> Needs:
        return needs(stage, self.run, self.deepspeed is not None, len(self.gpus), self.cores)

    def group_needs(self, group: tuple[str, ...]) -> Needs:
        return together(self.needs(self.plan.stages[id]) for id in group)

    def check(self) -> None:
        """Raises `ConfigError` for what this machine can't run."""
        to_run = [self.plan.stages[id] for id in sorted(self.found.to_run)]
        check_fits(((stage, self.needs(stage)) for stage in to_run), self.gpus)
        for stage in to_run:
            check_training(stage, self.needs(stage), self.run, self.deepspeed)
        on_cpu = not self.gpus or self.run.device == "cpu"
        if self.deepspeed is not None and on_cpu and any(stage.kind in TRAINING_KINDS for stage in to_run):
            check_compiler()

    def groups(self) -> list[tuple[str, ...]]:
        return group_stages(self.plan, self.found.to_run)

    def execute(self) -> Outcome:
        started = time.monotonic()
        clear_dead(self.folder / "work")
        stages = {id: Progress(state) for id, state in self.found.states(self.plan).items()}
        outcome = Outcome(stages)
        running: list[Running] = []
        try:
            with _StopRequest() as stop:
                self._run(running, stop, outcome)
        finally:
            for worker in running:
                worker.kill()
        outcome.interrupted |= any(progress.state == "interrupted" for progress in stages.values())
        outcome.seconds = time.monotonic() - started
        self.on_change(outcome)
        return outcome

    def _run(self, running: list[Running], stop: _StopRequest, outcome: Outcome) -> None:
        pending = self._by_importance(self.groups())
        while pending or running:
            if stop.requested:
                outcome.interrupted = True
                self._stop(running, outcome)
                return
            pending = self._start_ready(pending, running, outcome)
            self.on_change(outcome)
            if running:
                multiprocessing.connection.wait([s for r in running for s in r.sentinels()], timeout=POLL_SECONDS)
            for worker in list(running):
                ended = worker.has_ended()
                worker.read(outcome.stages)
                if ended:
                    running.remove(worker)
                    self.machine.give_back(worker.share)
                    pending += self._settle(worker, outcome)
            pending = self._skip_orphans(pending, outcome)

    def _by_importance(self, groups: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """What most other stages wait for comes first."""
        return sorted(groups, key=lambda group: -len(self.plan.below(group)))

    def _start_ready(self, pending: list[tuple[str, ...]], running: list[Running], outcome: Outcome) -> list[tuple[str, ...]]:
        ready = [(group, self.group_needs(group)) for group in pending if self._is_ready(group, outcome)]
        started = list(self.machine.choose(ready))
        running += [self._start(group, share, outcome) for group, share in started]
        return [group for group in pending if group not in [group for group, _ in started]]

    def _is_ready(self, group: tuple[str, ...], outcome: Outcome) -> bool:
        outside = {p for id in group for p in self.plan.stages[id].parents.values()} - set(group)
        return all(outcome.stages[p].state in ("exists", "done", "found") for p in outside)

    def _start(self, group: tuple[str, ...], share: Share, outcome: Outcome) -> Running:
        named = self.plan.stages[group[-1] if self.plan.stages[group[0]].step is not None else group[0]]
        name = f"{named.kind}-{named.key}"
        events, log = self.work / f"{name}.events.jsonl", self.folder / "logs" / f"{name}.log"
        events.unlink(missing_ok=True)
        orders = tuple(order_of(self.plan.stages[id]) for id in group)
        execution = execution_of(share.needs, self.run, self.deepspeed)
        task, path = Task(name, orders, str(self.store.root), execution, str(events), str(log)), self.work / f"{name}.task.json"
        task.save(path)
        for id in group:
            outcome.stages[id].log = str(log)
        ranks = range(share.needs.processes)
        logs = [RankLog(rank, Path(rank_log(task, path, rank)), log) for rank in ranks[1:]]
        port = reserve_port() if len(ranks) > 1 else None
        place = Place(share.gpus if self.gpus else None, port.getsockname()[1] if port else 0)
        return Running(self.pool.start(task, path, place), EventReader(events), group, share, logs, port)

    def _settle(self, worker: Running, outcome: Outcome) -> list[tuple[str, ...]]:
        """After a worker has ended: what it had not begun is to be run again."""
        for id in worker.stages:  # whatever became of its events, what is in the store is done
            if outcome.stages[id].state not in ENDED and self._in_store(id):
                outcome.stages[id].state = "found"
        rest = worker.settle(outcome.stages)
        return [rest] if rest else []

    def _in_store(self, id: str) -> bool:
        stage = self.plan.stages[id]
        try:
            return self.store.exists(stage.kind, stage.key, stage.version)
        except StoreError:
            return False

    def _skip_orphans(self, pending: list[tuple[str, ...]], outcome: Outcome) -> list[tuple[str, ...]]:
        """Takes out of `pending` what can't run any more because a parent failed or was stopped."""
        bad = [id for id, p in outcome.stages.items() if p.state in ("failed", "skipped", "interrupted")]
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
            worker.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in list(running):
            while not worker.has_ended() and time.monotonic() < deadline:
                for other in running:
                    other.read(outcome.stages)
                self.on_change(outcome)
                multiprocessing.connection.wait(worker.sentinels(), timeout=POLL_SECONDS)
            worker.kill()
            worker.read(outcome.stages)
            self.machine.give_back(worker.share)
            running.remove(worker)
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
