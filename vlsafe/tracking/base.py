"""What a tracker is: somewhere that runs are projected to. Our own records stay the truth; nothing is ever read back from it.

A `Run` is all that a tracker shows of one cell or one training stage; `runs.py` makes it from records. A `Tracker` opens runs
by id, is given the rows of their curves as they come, and at the end the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from vlsafe.keys import digest
from vlsafe.registry import Component

State = Literal["running", "done", "failed", "interrupted"]


class TrackerDown(Exception):
    """The tracker can't be reached or doesn't answer: what was not sent is sent by a later command."""


class Destination(NamedTuple):
    """Where runs go. `project` is the same for all the ways to one project: sent at once, or written to be sent later."""

    name: str
    project: str
    online: bool = False


@dataclass(frozen=True)
class Table:
    """`rows` is called when the table is sent; `identity` says what is in it without it."""

    columns: Sequence[str]
    rows: Callable[[], list[list[Any]]]
    identity: Any


@dataclass(frozen=True)
class Run:
    """`history` has one row a step, from step 0 on, and rows that were there stay as they were."""

    id: str
    name: str
    kind: Literal["cell", "training"]
    group: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    state: State = "running"
    history: Sequence[Mapping[str, Any]] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)  # pattern of metrics → the metric that is their x axis

    def digest(self) -> str:
        """Changes with anything that a tracker would show."""
        tables = {name: table.identity for name, table in self.tables.items()}
        shown = [self.name, self.group, self.tags, self.config, self.summary, self.state, self.history, tables]
        return digest(shown)


class OpenRun(Protocol):
    next_step: int  # rows before it are there already

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds the row of `next_step`."""

    def finish(self, run: Run) -> None:
        """Everything but the history; returns when all of it is where it belongs."""


class Tracker(Protocol):
    def open(self, run: Run, steps: Mapping[str, int]) -> OpenRun:
        """`steps`: how many rows went to the same project before, by the destination's name. Raises `TrackerDown`."""

    def where(self) -> str:
        """The place to look at, for a message."""


class Tracking(Component):
    """Base of all options of the group `tracking`. None of its settings is in a key."""

    project: str
    upload_text: bool
    wait_seconds: float  # at most, at the end of a command, for what is not sent yet

    def check_ready(self) -> None:
        """Raises `ConfigError` where this machine can't do what was asked for: called before anything runs."""

    def destination(self, outputs: Path) -> Destination | None:
        """None where nothing is to be tracked."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def tracker(self, outputs: Path) -> Tracker:
        """Imports the tracker's package: called in the tracking process only."""
        raise TypeError(f"{type(self).__name__} is abstract")
