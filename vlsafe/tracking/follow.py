"""The launcher's side of tracking: starts the tracking process, asks it to finish, waits for a bounded time, says one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vlsafe.report.build import shown
from vlsafe.report.text import printable
from vlsafe.store import Store
from vlsafe.sweep import Sweep
from vlsafe.tracking.base import Tracking
from vlsafe.tracking.process import FINISH, Status, read_status, task_of
from vlsafe.tracking.state import up_to_date

ABORT_SECONDS = 3.0  # to finish in when the command itself ends with an error or a second Ctrl-C
POLL_SECONDS = 0.05
MAX_PROBLEM = 160


@contextlib.contextmanager
def followed(sweep: Sweep, store: Store, tracking: Tracking, runs: bool, console: Console) -> Iterator[None]:
    """Within it the sweep's records go to the tracker as they come. Where nothing `runs` and all was sent before, no process is
    started. Nothing that a tracker does or doesn't do raises here."""
    follower = Follower(sweep.folder, store, tracking, console)
    if runs:
        follower.start()
    try:
        yield
    except BaseException:
        follower.abort()
        raise
    follower.finish(tracking.wait_seconds)


class Follower:
    def __init__(self, folder: Path, store: Store, tracking: Tracking, console: Console, again: bool = False) -> None:
        self.folder, self.store, self.tracking, self.console, self.again = folder, store, tracking, console, again
        self.destination = tracking.destination(folder.parent.parent)
        self.process: subprocess.Popen[bytes] | None = None
        self.failed = ""

    @property
    def work(self) -> Path:
        return self.folder / "work" / str(os.getpid())

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "tracking.log"

    def start(self) -> None:
        if self.destination is None:
            return
        task = task_of(self.folder, self.store.root, self.tracking, self.work / "tracking.status.json", self.again)
        try:
            task.save(self.work / "tracking.task.json")
            Path(task.status).unlink(missing_ok=True)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(  # its standard input is closed when we end, however we end
                    [sys.executable, "-m", "vlsafe.tracking.process", str(self.work / "tracking.task.json")],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment(),
                    start_new_session=True,  # the terminal's Ctrl-C is the executor's affair
                )  # fmt: skip
        except OSError as error:
            self.failed = f"can't be started ({error.strerror})"

    def finish(self, seconds: float | None) -> Status | None:
        """Ask for all that is left and wait for it, at most `seconds`. None where there was nothing to send."""
        if self.destination is None:
            return None
        if self.process is None and not self.failed:
            if not self.again and up_to_date(self.folder, self.tracking, self.destination):
                return None
            self.start()
        try:
            ended = self.wait(seconds)
        except KeyboardInterrupt:
            self.kill()
            raise
        if not ended:
            self.kill()
        return self.tell(ended)

    def abort(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            self.wait(ABORT_SECONDS)
        self.kill()

    def wait(self, seconds: float | None) -> bool:
        if self.process is None:
            return True
        with contextlib.suppress(OSError):  # it is gone already
            assert self.process.stdin is not None
            self.process.stdin.write(FINISH + b"\n")
            self.process.stdin.flush()  # and left open: once it is closed, the process takes us for gone
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.process.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def tell(self, ended: bool) -> Status:
        status = read_status(self.work / "tracking.status.json")
        if status.complete and not self.failed:
            self.line(f"tracking: {status.total} runs in {place(status.where)}")
            return status
        problem = self.failed or status.problem or ("no end within the time to wait" if ended is False else "it broke off")
        left = f"{status.total - status.sent} of {status.total} runs" if status.total else "its runs are"
        self.line(
            f"tracking: {left} not sent ({printable(problem, MAX_PROBLEM)}); send later: "
            f"python launch/dashboard.py {self.folder.name} sync; log: {shown(self.log)}"
        )
        return status

    def line(self, text: str) -> None:
        self.console.print(Text(text, style="dim"), soft_wrap=True)


def place(where: str) -> str:
    if "://" in where:
        return where
    path = Path(where)
    return (
        f"{shown(path)} (no key: `wandb sync {shown(path)}/offline-run-*` sends them)" if path.name == "wandb" else shown(path)
    )


def environment() -> dict[str, str]:
    """One core's worth of everything; the package as the launcher has it, whatever folder it runs in."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "GOMAXPROCS": "1", "PYTHONPATH": os.pathsep.join(paths)}
