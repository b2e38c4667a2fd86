"""A lease on a key, so that two processes don't do the same work. It only saves work: publication is safe without it.

The lease is a file with its holder's host, process id and start time. A holder on this host that has died loses it at once,
one on another host when its heartbeat (the file's modification time) is `STALE_SECONDS` old.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
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


class Lease:
    """`acquire()` is True for one holder at a time; `release()` gives it back. Keeps its own heartbeat while it is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create():
            if not self._is_stale():
                return False
            # Whoever renames the dead holder's file away may take its place; a second taker finds nothing to rename.
            grave = self.path.with_name(f".{self.path.name}.{self.token}")
            try:
                self.path.rename(grave)
            except FileNotFoundError:
                return False
            grave.unlink(missing_ok=True)
            if not self._create():
                return False
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name=f"lease {self.path.name}", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._owner().get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def holder(self) -> str:
        """Who holds it, for a message: `host, process 123`."""
        owner = self._owner()
        return f"{owner.get('host', 'unknown host')}, process {owner.get('pid', '?')}"

    def _create(self) -> bool:
        # Written aside and linked into place, so that nobody ever reads half a lease.
        text = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid()), "token": self.token}
        )
        draft = self.path.with_name(f".{self.path.name}.{self.token}.new")
        draft.write_text(text)
        try:
            os.link(draft, self.path)
            return True
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)

    def _owner(self) -> dict[str, object]:
        try:
            owner = json.loads(self.path.read_text())
            return owner if isinstance(owner, dict) else {}
        except (OSError, ValueError):
            return {}

    def _is_stale(self) -> bool:
        owner = self._owner()
        if owner.get("host") == socket.gethostname():
            start = process_start(int(str(owner.get("pid", 0))))
            return start is None or start not in (owner.get("start"), "unknown")
        try:
            return time.time() - self.path.stat().st_mtime > STALE_SECONDS
        except FileNotFoundError:
            return True

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self.path)
