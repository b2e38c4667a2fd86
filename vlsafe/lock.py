"""A lease on a key, so that two processes don't do the same work. It only saves work: publication is safe without it.

The lease is a file with its holder's machine, process id and start time. A holder on this machine that has died loses it at
once, one elsewhere when its heartbeat (the file's modification time) is `STALE_SECONDS` old. Written for shared file systems:
times are the file system's own, so clocks of nodes may differ; attributes are read through a fresh `open`, which NFS answers
from the server; a `link` whose reply was lost counts if it happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


def process_start(pid: int) -> str | None:
    """A process's start time, which tells it from a later one with the same id; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, ValueError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "unknown"
    return "unknown"


def machine() -> str:
    """Where a process id means something: this boot of this kernel, and the container's own process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (the link's text, not where it leads)
    except OSError:
        return socket.gethostname()


class Lease:
    """`acquire()` is True for one holder at a time; `release()` gives it back. Keeps its own heartbeat while it is held.

    `lost` is set when another process took it over: a holder that hung for a minute, or whose file system did, may find that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = secrets.token_hex(8)
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            owner = read_owner(self.path)
            if not self._is_stale(owner) or not self._bury(owner) or not self._create():
                return False
        self._stop.clear()
        self.lost.clear()
        self._thread = threading.Thread(target=self._beat, name=f"lease {self.path.name}", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._mine():
            self.path.unlink(missing_ok=True)

    def holder(self) -> str:
        """Who holds it, for a message: `host, process 123`."""
        owner = read_owner(self.path)
        return f"{owner.get('host', 'unknown host')}, process {owner.get('pid', '?')}"

    def _mine(self) -> bool:
        return read_owner(self.path).get("token") == self.token

    def _create(self) -> bool:
        # Written aside and linked into place, so that nobody ever reads half a lease.
        owner = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "token": self.token,
        }
        draft = self._beside("new")
        draft.write_text(json.dumps(owner))
        try:
            os.link(draft, self.path)
            return True
        except FileExistsError:
            return draft.stat().st_nlink == 2  # it was this very call, repeated because the first reply was lost
        finally:
            draft.unlink(missing_ok=True)

    def _bury(self, owner: dict[str, object]) -> bool:
        """Whoever renames the dead holder's file away may take its place; a second taker finds nothing to rename, or someone
        else's lease, which goes back."""
        grave = self._beside("dead")
        try:
            self.path.rename(grave)
        except FileNotFoundError:
            return False
        try:
            if read_owner(grave).get("token") == owner.get("token"):
                return True
            with contextlib.suppress(FileExistsError):
                os.link(grave, self.path)
            return False
        finally:
            grave.unlink(missing_ok=True)

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.token}.{what}")

    def _is_stale(self, owner: dict[str, object]) -> bool:
        if owner.get("machine") == machine():
            start = process_start(int(str(owner.get("pid", 0))))
            return start is None or start not in (owner.get("start"), "unknown")
        return age(self.path) > STALE_SECONDS

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if not self._mine():
                    self.lost.set()
                    return
                os.utime(self.path)


@contextlib.contextmanager
def held(path: Path, poll_seconds: float = 0.05) -> Iterator[None]:
    """Within it the lease at `path` is held, after waiting for it: for a few reads and writes that none may come between."""
    lease = Lease(path)
    while not lease.acquire():
        time.sleep(poll_seconds)
    try:
        yield
    finally:
        lease.release()


def read_owner(path: Path) -> dict[str, object]:
    """Empty where there is no lease, or none that can be read."""
    try:
        owner = json.loads(path.read_text())
        return owner if isinstance(owner, dict) else {}
    except (OSError, ValueError):
        return {}


def age(path: Path) -> float:
    """Seconds since a file's last change, by the clock of its file system alone; infinite where it is gone."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}.time")
    try:
        probe.touch()
        return modified(probe) - modified(path)
    except FileNotFoundError:
        return math.inf
    finally:
        probe.unlink(missing_ok=True)


def modified(path: Path) -> float:
    """The file system's own time of the last change, asked of it anew."""
    with path.open("rb") as handle:
        return os.fstat(handle.fileno()).st_mtime
