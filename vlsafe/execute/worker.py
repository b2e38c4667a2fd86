"""The one worker entry: `python -m vlsafe.execute.worker TASK.json`, or `main` in a warm child process.

It runs the task's stages one after the other: takes the lease, runs the stage in scratch, publishes it. It never reads a Hydra
config. Exit status: 0 all stages are there, 1 a stage failed, 75 stopped on request (the same command goes on from there).
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from vlsafe.errors import CorruptArtifactError, StageInterrupted, VlsafeError
from vlsafe.execute.events import EventWriter
from vlsafe.execute.stages import run_stage
from vlsafe.execute.task import StageOrder, Task, load_task
from vlsafe.provenance import environment
from vlsafe.stage import StageContext
from vlsafe.store import Store

FAILED, INTERRUPTED = 1, 75  # 75: EX_TEMPFAIL
LEASE_POLL_SECONDS = 0.2


class Worker:
    def __init__(self, task: Task) -> None:
        self.task, self.store = task, Store(Path(task.store))
        self.events = EventWriter(Path(task.events))
        self.stop = threading.Event()

    def run(self) -> int:
        unavailable: set[str] = set()
        for order in self.task.stages:
            if self.stop.is_set():
                self.events.state(order.id, "interrupted")
            elif any(parent in unavailable for parent in order.parents.values()):
                unavailable.add(order.id)
                self.events.state(order.id, "skipped")
            elif not self._run_one(order):
                unavailable.add(order.id)
        if self.stop.is_set():
            return INTERRUPTED
        return FAILED if unavailable else 0

    def _run_one(self, order: StageOrder) -> bool:
        started = time.time()
        try:
            made = self._make(order)
            self.events.state(order.id, "done" if made else "found", seconds=time.time() - started)
            return True
        except StageInterrupted:
            self.stop.set()
            self.events.state(order.id, "interrupted")
        except Exception as error:
            print(f"--- {order.label} ({order.id})", file=sys.stderr)
            traceback.print_exc()
            self.events.state(order.id, "failed", error=one_line(error, self.store), seconds=time.time() - started)
        return False

    def _make(self, order: StageOrder) -> bool:
        """True when this process made the artifact, False when it was there."""
        lease = self.store.lease(order.kind, order.key)
        waiting = False
        while not lease.acquire():
            if self._there(order):
                return False
            if not waiting:
                self.events.state(order.id, "waiting", note=f"made by {lease.holder()}")
                waiting = True
            if self.stop.wait(LEASE_POLL_SECONDS):
                raise StageInterrupted(order.label)
        try:
            if self._there(order):
                return False
            self.events.state(order.id, "running")
            self._make_under_lease(order)
            return True
        finally:
            lease.release()

    def _there(self, order: StageOrder) -> bool:
        try:
            return self.store.exists(order.kind, order.key, order.version)
        except CorruptArtifactError as error:
            print(error, file=sys.stderr)
            self.store.quarantine(order.kind, order.key)
            return False

    def _make_under_lease(self, order: StageOrder) -> None:
        scratch = self.store.scratch(order.kind, order.key)
        started = time.time()
        ctx = StageContext(
            out=scratch,
            work=scratch / "work",
            parents={name: self.store.read(*id.split("/")) for name, id in order.parents.items()},
            execution=self.task.execution,
            progress=functools.partial(self.events.progress, order.id),
            should_stop=self.stop.is_set,
            earlier=tuple(self.store.relatives(order.kind, order.family, order.key)),
        )
        run_stage(order.kind, order.settings, ctx)
        manifest = {
            "version": order.version,
            "label": order.label,
            "spec": order.spec,
            "parents": order.parents,
            "facts": ctx.facts,
            "execution": {"settings": order.settings, **vars(self.task.execution)},
            "environment": environment(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": time.time() - started + float(ctx.facts.pop("earlier_seconds", 0.0)),
            "cost": {"class": order.cost_class, "units": order.cost_units},
        }
        self.store.publish(scratch, order.kind, order.key, manifest, order.family)


def one_line(error: Exception, store: Store) -> str:
    """What the user is told; the traceback is in the log."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"store={store.root} is full: free some space (launch/store.py gc) or set store=FOLDER; nothing published was lost"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return first if isinstance(error, VlsafeError) and first else f"{type(error).__name__}: {first}"


def main(task_path: str) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print("error: a stage runs in one process; start one worker, not WORLD_SIZE of them", file=sys.stderr)
        return FAILED
    task = load_task(Path(task_path))
    worker = Worker(task)

    def on_stop(signum: int, frame: FrameType | None) -> None:
        worker.stop.set()

    signal.signal(signal.SIGTERM, on_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group; the executor decides
    set_threads(task.execution.threads)
    return worker.run()


def set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
