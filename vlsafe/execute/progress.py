"""What is known of each stage while a plan runs, from the events that workers write."""

from __future__ import annotations

from dataclasses import dataclass

from vlsafe.execute.events import Event

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
        """What is done stays done, and a first failure stands: what other ranks say afterwards only follows from it."""
        if self.state in ENDED:
            return
        self.state = event["state"]
        if event["state"] == "running" and self.started is None:
            self.started = event["time"]
        self.done, self.total = event.get("done", self.done), event.get("total", self.total)
        self.note = event.get("note", self.note)
        self.seconds, self.error = event.get("seconds", self.seconds), event.get("error", self.error)

    def fail(self, error: str) -> None:
        self.state, self.error = "failed", error


@dataclass
class Outcome:
    stages: dict[str, Progress]
    interrupted: bool = False
    seconds: float = 0.0

    def failed(self) -> list[str]:
        return [id for id, p in self.stages.items() if p.state == "failed"]
