"""Events: one JSON line each, appended by a worker and read by whoever watches, here or through a shared file system."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from vlsafe.errors import VlsafeError
from vlsafe.ranks import in_words
from vlsafe.store import Store

State = Literal["waiting", "running", "done", "found", "failed", "skipped", "interrupted"]
PROGRESS_SECONDS = 0.25


class Event(TypedDict, total=False):
    stage: str  # kind/key
    state: State
    time: float  # seconds since the epoch
    done: int
    total: int
    note: str
    seconds: float
    error: str


class EventWriter:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = path.open("a", encoding="utf-8", buffering=1)
        self._last = 0.0

    def state(self, stage: str, state: State, **more: Any) -> None:
        self._last = 0.0
        self._write({"stage": stage, "state": state, "time": time.time(), **more})

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.time()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._write({"stage": stage, "state": "running", "time": now, "done": done, "total": total, "note": note})

    def _write(self, event: dict[str, Any]) -> None:
        self._handle.write(json.dumps(event) + "\n")


class EventReader:
    """New events at each call; half a line is kept until the rest is there."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._rest = path, 0, b""

    def new(self) -> list[Event]:
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._offset)
                chunk = handle.read()
        except FileNotFoundError:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [event for line in lines if (event := parsed(line)) is not None]


def parsed(line: bytes) -> Event | None:
    """None for a line that two machines wrote at once through a file system that doesn't append whole lines."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return cast(Event, event) if isinstance(event, dict) and "stage" in event and "state" in event else None


def one_line(error: Exception, store: Store) -> str:
    """What the user is told; the traceback is in the log."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"store={store.root} is full: free some space (launch/store.py gc) or set store=FOLDER; nothing published was lost"
        )
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return first if isinstance(error, VlsafeError) and first else in_words(f"{type(error).__name__}: {first}")
