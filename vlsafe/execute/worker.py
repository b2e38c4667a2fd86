"""The one worker entry: `python -m vlsafe.execute.worker TASK.json`, or `main` in a warm child process.

It runs the task's stages one after the other: takes the lease, runs the stage in scratch, publishes it. It never reads a Hydra
config. Exit status: 0 all stages are there, 1 a stage failed, 75 stopped on request (the same command goes on from there).

It may be one of several ranks, of the local executor, `torchrun` or `deepspeed`. The main one does all of that, and alone what
ranks don't share; for the rest it tells the others which stage's code to run with it (`Call`). A rank that fails in such a
stage ends at once, with the reason in the events, and whoever started it ends the others.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

from vlsafe.errors import CheckError, CorruptArtifactError, SourceError, StageInterrupted
from vlsafe.execute.events import EventWriter, State, one_line
from vlsafe.execute.process import StopRequest, end_with_launcher, given_gpus, set_path, set_threads
from vlsafe.execute.stages import run_stage
from vlsafe.execute.task import StageOrder, Task, load_task, with_snapshots
from vlsafe.execute.unchanged import check_unchanged
from vlsafe.provenance import environment, ran_on
from vlsafe.ranks import ALONE, AgreedError, Ranks, join, world_size
from vlsafe.stage import TRAINING_KINDS, PublishSnapshot, StageContext, no_progress
from vlsafe.store import Store

FAILED, INTERRUPTED = 1, 75  # 75: EX_TEMPFAIL
SHARED_KINDS = (*TRAINING_KINDS, "generate")  # what several ranks do together
LEASE_POLL_SECONDS = 0.2


class Call(NamedTuple):
    """What the main rank tells the others: which stage's code to run, and with what; every rank runs it with the same paths."""

    order: int  # its place in the task
    scratch: Path
    parents: Mapping[str, Path]
    earlier: tuple[Path, ...]
    snapshots: tuple[int, ...]  # the steps after which the main rank publishes one


class Worker:
    def __init__(self, task: Task, ranks: Ranks, stop: StopRequest) -> None:
        self.task, self.store, self.ranks, self.stop = task, Store(Path(task.store)), ranks, stop
        self.events = EventWriter(Path(task.events))
        self.published: set[str] = set()  # snapshots that were said to be done while their training goes on
        self.called = False  # whether the other ranks are in a stage with this one, and would wait for it

    def run(self) -> int:
        """As the main rank; alone, too."""
        status = self._run_all()
        self.ranks.broadcast(status)
        return status

    def follow(self) -> int:
        """As any other rank: runs what the main one calls, until that one is through."""
        while True:
            try:
                call = self.ranks.broadcast(cast("Call | int", None))
            except RuntimeError as error:
                print(f"rank {self.ranks.rank}: the main rank is gone ({one_line(error, self.store)})", file=sys.stderr)
                return FAILED
            if isinstance(call, int):
                return call
            order = self.task.stages[call.order]
            try:
                self._run_stage(order, call, dict.fromkeys(call.snapshots, keep_nothing))
            except (StageInterrupted, AgreedError):
                pass
            except Exception as error:
                self._fail_alone(next(group for group in with_snapshots(self.task.stages) if order in group), error)

    def _run_all(self) -> int:
        unavailable: set[str] = set()
        for orders in with_snapshots(self.task.stages):
            if self.stop.is_set():
                unavailable |= {order.id for order in orders}
                self._tell(orders, "interrupted")
            elif any(parent in unavailable for order in orders for parent in order.parents.values()):
                unavailable |= {order.id for order in orders}
                self._tell(orders, "skipped")
            elif not self._run_one(orders):
                unavailable |= {order.id for order in orders}
        if not unavailable:  # a stop that came when the last stage was as good as done stops nothing
            return 0
        return INTERRUPTED if self.stop.is_set() else FAILED

    def _tell(self, orders: Sequence[StageOrder], state: State, **more: Any) -> None:
        """Of those that were not said to be done before."""
        for order in orders:
            if order.id not in self.published:
                self.events.state(order.id, state, **more)

    def _run_one(self, orders: Sequence[StageOrder]) -> bool:
        """One stage, or a training with the snapshots that are taken on its way."""
        started = time.time()
        try:
            made = self._make(orders)
            for order in orders:
                self._tell([order], "done" if order in made else "found", seconds=time.time() - started)
            return True
        except StageInterrupted:
            self.stop.set()
            self._tell(orders, "interrupted")
        except Exception as error:
            if self.called and not isinstance(error, AgreedError):
                self._fail_alone(orders, error)
            self.called = False
            self._failed(orders, error, time.time() - started)
        return False

    def _failed(self, orders: Sequence[StageOrder], error: Exception, seconds: float | None = None) -> None:
        rank = f"rank {self.ranks.rank}: " if not self.ranks.main else ""
        print(f"--- {rank}{orders[-1].label} ({orders[-1].id})", file=sys.stderr)
        traceback.print_exception(error)
        self._tell(orders, "failed", error=rank + one_line(error, self.store), seconds=seconds)

    def _fail_alone(self, orders: Sequence[StageOrder], error: Exception) -> None:
        """Ends a rank whose stage failed: the others may be waiting for it within the stage, so nobody can be told."""
        self._failed(orders, error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FAILED)

    def _make(self, orders: Sequence[StageOrder]) -> list[StageOrder]:
        """The orders whose artifacts this process made; the others were there."""
        lease = self.store.lease(orders[-1].kind, orders[-1].training_key)
        waiting = False
        while not lease.acquire():
            if all(self._there(order) for order in orders):
                return []
            if not waiting:
                self._tell(orders, "waiting", note=f"made by {lease.holder()}")
                waiting = True
            time.sleep(LEASE_POLL_SECONDS)
            if self.stop.is_set():
                raise StageInterrupted(orders[-1].label)
        try:
            missing = [order for order in orders if not self._there(order)]
            if missing:
                self.events.state(missing[-1].id, "running")
                self._make_under_lease(missing[-1], missing[:-1])
            return missing
        except Exception:
            if not lease.lost.is_set() or self.ranks.world > 1:
                raise
            traceback.print_exc()
            print(f"{orders[-1].label}: this process hung, and {lease.holder()} has taken the stage over", file=sys.stderr)
        finally:
            lease.release()
        return self._make(orders)

    def _there(self, order: StageOrder) -> bool:
        try:
            return self.store.exists(order.kind, order.key, order.version)
        except CorruptArtifactError as error:
            print(error, file=sys.stderr)
            self.store.quarantine(order.kind, order.key)
            return False

    def _make_under_lease(self, order: StageOrder, snapshots: Sequence[StageOrder] = ()) -> None:
        started = time.time()
        check_unchanged(order.contents, order.settings)
        call = Call(
            self.task.stages.index(order),
            self.store.scratch(order.kind, order.training_key),
            {name: self.store.read(*id.split("/")) for name, id in order.parents.items()},
            tuple(self.store.relatives(order.kind, order.family, order.key)),
            tuple(s.step for s in snapshots if s.step is not None),
        )
        if order.kind in SHARED_KINDS and self.ranks.world > 1:
            self.called = True
            self.ranks.broadcast(call)
        publish = {s.step: functools.partial(self._publish_snapshot, s) for s in snapshots if s.step is not None}
        ctx = self._run_stage(order, call, publish)
        self.called = False
        self._check_read(order, call.scratch)
        seconds = time.time() - started + float(ctx.facts.pop("earlier_seconds", 0.0))
        manifest = self._manifest(order, ctx.facts, started, seconds, order.cost_class, order.cost_units)
        self.store.publish(call.scratch, order.kind, order.key, manifest, order.family)

    def _check_read(self, order: StageOrder, scratch: Path) -> None:
        """Before it is published: it must have read what its key stands for. What was begun on other files is thrown away."""
        try:
            check_unchanged(order.contents, order.settings)
        except SourceError:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _run_stage(self, order: StageOrder, call: Call, snapshots: Mapping[int, PublishSnapshot]) -> StageContext:
        """The stage's code, on this rank as on all others that have a part in it."""
        ranks = self.ranks if order.kind in SHARED_KINDS else ALONE
        agreed = ranks.world > 1 and order.kind in TRAINING_KINDS
        ctx = StageContext(
            out=call.scratch,
            work=call.scratch / "work",
            parents=call.parents,
            execution=self.task.execution,
            progress=functools.partial(self.events.progress, order.id) if self.ranks.main else no_progress,
            should_stop=(lambda: ranks.any(self.stop.is_set())) if agreed else self.stop.is_set,
            ranks=ranks,
            earlier=call.earlier,
            verdicts=self.store.verdicts(order.verdicts, order.kind, order.training_key) if order.verdicts else None,
            step=order.step,
            snapshots=snapshots,
        )
        try:
            run_stage(order.kind, order.settings, ctx)
        except StageInterrupted:  # as all ranks agreed
            ranks.barrier()
            self.called = False
            raise
        ranks.barrier()
        return ctx

    def _publish_snapshot(self, order: StageOrder, write: Callable[[Path], object], facts: dict[str, Any]) -> None:
        """An intermediate model of the training that is running, whose lease is held."""
        lease, started = self.store.lease(order.kind, order.key), time.time()
        lease.acquire()  # for who looks at scratch; the training's keeps others away
        try:
            scratch = self.store.scratch(order.kind, order.key)
            write(scratch)
            self._check_read(order, scratch)
            seconds = time.time() - started
            manifest = self._manifest(order, facts, started, seconds, f"{order.cost_class} snapshot", 1.0)
            self.store.publish(scratch, order.kind, order.key, manifest)
        finally:
            lease.release()
        self._tell([order], "done", seconds=time.time() - started)
        self.published.add(order.id)

    def _manifest(
        self, order: StageOrder, facts: dict[str, Any], started: float, seconds: float, cost_class: str, units: float
    ) -> dict[str, Any]:
        return {
            "version": order.version,
            "label": order.label,
            "spec": order.spec,
            "parents": order.parents,
            "facts": facts,
            "execution": {"settings": order.settings, **vars(self.task.execution), **given_gpus(), "ran_on": ran_on()},
            "environment": environment(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": seconds,
            "cost": {"class": cost_class, "units": units},
        }


def keep_nothing(write: Callable[[Path], object], facts: dict[str, Any]) -> None:
    """What a rank that is not the main one does with a snapshot."""


def main(task_path: str) -> int:
    task = load_task(Path(task_path))
    set_threads(task.execution.threads)
    set_path()
    stop = StopRequest()

    def on_stop(signum: int, frame: FrameType | None) -> None:
        stop.set()

    # USR1: what a cluster's scheduler says before a time limit.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, on_stop)
    try:
        ranks = join(task.execution.device)
        if ranks.world != task.execution.num_processes:
            raise CheckError(f"{ranks.world} processes were started for a task of {task.execution.num_processes}")
    except CheckError as error:
        events = EventWriter(Path(task.events))
        for order in task.stages:
            events.state(order.id, "failed", error=str(error))
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    worker = Worker(task, ranks, stop)
    return worker.run() if ranks.main else worker.follow()


if __name__ == "__main__":
    if world_size() > 1:
        threading.Thread(target=end_with_launcher, daemon=True).start()
    status = main(next(a for a in sys.argv[1:] if not a.startswith("--local_rank")))  # `deepspeed` adds that option
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # else what is left of a broken process group may keep it from ending
