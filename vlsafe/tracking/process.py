"""The tracking process: python -m vlsafe.tracking.process TASK.json

One for each command, at low priority and apart from the stages, so that a tracker that is down or slow stops none of them. It
follows the sweep's records until its parent writes `finish` into its standard input, sends what is left, and ends. Where the
parent is gone instead, it finishes what is open and is gone itself soon after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.errors import VlsafeError
from vlsafe.files import read_json, write_json
from vlsafe.registry import make
from vlsafe.settings import build, settings_of
from vlsafe.store import Store
from vlsafe.tracking.base import TrackerDown, Tracking
from vlsafe.tracking.projection import Projection

POLL_SECONDS = 1.0
BACK_OFF_SECONDS = 30.0  # after a tracker that could not be reached
ORPHAN_SECONDS = 5.0
NICENESS = 10
FINISH = b"finish"
DOWN, BUG = 1, 70


@dataclass(frozen=True)
class TrackingTask:
    """No secret is in it: the tracker's key is found by the tracker's own package, in the environment."""

    folder: str  # the sweep's
    store: str
    tracking: dict[str, Any]
    status: str  # the file that tells the parent how far it got
    again: bool = False

    def save(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))


@dataclass
class Status:
    sent: int = 0
    total: int = 0
    where: str = ""
    problem: str = ""
    complete: bool = False


def read_status(path: Path) -> Status:
    try:
        return build(Status, read_json(path), "status")
    except (OSError, ValueError, VlsafeError):
        return Status()


def task_of(folder: Path, store: Path, tracking: Tracking, status: Path, again: bool) -> TrackingTask:
    return TrackingTask(str(folder), str(store), settings_of(tracking), str(status), again)


class Parent:
    """`done` is set when the parent asks to finish, or is gone: then the process ends soon, whatever it is in."""

    def __init__(self) -> None:
        self.done, self.asked = threading.Event(), False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            self.asked = sys.stdin.buffer.readline().strip() == FINISH
        self.done.set()
        with contextlib.suppress(OSError):
            sys.stdin.buffer.read()  # until the other end is closed, by the parent or by its death
        time.sleep(ORPHAN_SECONDS)
        os._exit(DOWN)


class TrackingProcess:
    def __init__(self, task: TrackingTask, parent: Parent) -> None:
        self.task, self.parent, self.status = task, parent, Status()
        folder = Path(task.folder)
        outputs = folder.parent.parent
        tracking: Tracking = make("tracking", task.tracking)
        destination = tracking.destination(outputs)
        assert destination is not None, "started for nothing"
        tracker = tracking.tracker(outputs)
        self.folder, self.tracking, self.destination, self.tracker = folder, tracking, destination, tracker
        self.projection = Projection(
            folder, Store(Path(task.store)), tracking, destination, tracker, task.again, on_change=lambda _: self.tell()
        )

    def run(self) -> int:
        self.tell()
        self.follow()
        self.status.problem = ""
        self.tell()
        try:
            if not self.parent.asked:
                self.projection.close()
                return DOWN
            self.status.complete = self.projection.finish()
        except TrackerDown as down:
            self.say(down)
            return DOWN
        if self.projection.busy:
            self.status.problem = f"{len(self.projection.busy)} runs are being sent by another command"
        self.tell()
        return 0

    def follow(self) -> None:
        resting_until = 0.0
        while not self.parent.done.wait(POLL_SECONDS):
            if time.monotonic() < resting_until:
                continue
            try:
                self.projection.look()
            except TrackerDown as down:
                self.say(down)
                resting_until = time.monotonic() + BACK_OFF_SECONDS
            except VlsafeError as error:  # an artifact that was damaged or removed meanwhile: the end will tell
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                resting_until = time.monotonic() + BACK_OFF_SECONDS

    def say(self, down: TrackerDown) -> None:
        print(f"{time.strftime('%H:%M:%S')} {down}", file=sys.stderr, flush=True)
        self.status.problem = str(down)
        self.tell()

    def tell(self) -> None:
        self.status.sent, self.status.total = self.projection.sent, self.projection.total
        self.status.where = self.tracker.where()
        with contextlib.suppress(OSError):
            write_json(Path(self.task.status), dataclasses.asdict(self.status))


def main(task_path: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    parent = Parent()
    task = build(TrackingTask, read_json(Path(task_path)), "task")
    try:
        return TrackingProcess(task, parent).run()
    except Exception as error:
        traceback.print_exc()
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OSError):
            status = dataclasses.asdict(read_status(Path(task.status)))
            write_json(Path(task.status), {**status, "problem": problem, "complete": False})
        return BUG


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a tracker's own exit hooks wait for servers that don't answer
