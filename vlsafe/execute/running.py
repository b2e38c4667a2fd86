"""A task that is running: its processes, who of them ended first and why, and the end of the others."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vlsafe.execute.devices import Share
from vlsafe.execute.events import EventReader
from vlsafe.execute.progress import ENDED, Progress
from vlsafe.execute.worker import INTERRUPTED

GRACE_SECONDS = 5.0  # for the other ranks to say why too, once one has ended
# What a rank says when another one is gone. It never is the first cause.
PEER_GONE = re.compile(r"gloo|nccl|process group|connection (closed|reset|refused)|broken pipe|store.*(closed|timeout)", re.I)
MAY_FOLLOW = (signal.SIGABRT, signal.SIGTERM)  # signals that may end a rank because another one is gone


class RankLog:
    """Copies what another rank than the main one prints into the task's log, each line behind the rank's name.

    It is written to a file of its own first, so that nothing is lost, whoever is killed.
    """

    def __init__(self, rank: int, source: Path, log: Path) -> None:
        self._mark, self._source, self._log = f"[rank {rank}] ".encode(), source, log
        self._offset, self._rest = 0, b""
        source.unlink(missing_ok=True)  # of an earlier try

    def copy(self, all_of_it: bool = False) -> None:
        """What is new, by whole lines; with `all_of_it` a last line without an end, too."""
        try:
            with self._source.open("rb") as handle:
                handle.seek(self._offset)
                chunk = handle.read()
        except FileNotFoundError:
            return
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if all_of_it and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        if lines:
            with self._log.open("ab") as handle:
                handle.write(b"".join(self._mark + line + b"\n" for line in lines))


@dataclass
class Running:
    processes: Sequence[BaseProcess]  # by rank
    reader: EventReader
    stages: tuple[str, ...]
    share: Share
    logs: Sequence[RankLog] = ()
    port: socket.socket | None = None  # held for the ranks to meet at
    ended: dict[int, int] = field(default_factory=dict)  # exit codes by rank, in the order in which they were seen to end
    first: tuple[int, ...] = ()  # the ranks that had ended when any had
    killed: set[int] = field(default_factory=set)  # ranks that were ended here, so that their end is nobody's cause
    deadline: float | None = None

    def sentinels(self) -> list[Any]:
        """What becomes ready when a process ends that has not been seen to end yet."""
        return [p.sentinel for rank, p in enumerate(self.processes) if rank not in self.ended]

    def has_ended(self) -> bool:
        """Whether all processes have. Once one has, the others get a moment, and are killed then."""
        for rank, process in enumerate(self.processes):
            if rank not in self.ended and process.exitcode is not None:
                self.ended[rank] = process.exitcode
        self.first = self.first or tuple(self.ended)
        if len(self.ended) == len(self.processes):
            return True
        if self.ended:
            self.deadline = self.deadline or time.monotonic() + GRACE_SECONDS
            if time.monotonic() > self.deadline:
                self.kill()
        return len(self.ended) == len(self.processes)

    def read(self, stages: dict[str, Progress]) -> None:
        """What its ranks have said since."""
        for event in self.reader.new():
            stages[event["stage"]].apply(event)
        for log in self.logs:
            log.copy()

    def ask_to_stop(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Those that are left, and waits until they are gone."""
        left = [(rank, process) for rank, process in enumerate(self.processes) if rank not in self.ended]
        for rank, process in left:
            if process.is_alive():
                self.killed.add(rank)
                process.kill()
        for rank, process in left:
            process.join()
            self.ended[rank] = process.exitcode or 0

    def was_interrupted(self) -> bool:
        """Whether all of it stopped at a checkpoint, as somebody asked it to."""
        own = self._own()
        return bool(own) and all(code == INTERRUPTED for code in own.values())

    def cause(self) -> str:
        """Why it ended, as its exit codes tell."""
        rank, code = min((self._own() or self.ended).items(), key=lambda end: _rank_of_cause(end[1]))
        who = f"rank {rank}" if len(self.processes) > 1 else "the worker"
        if code < 0:
            hint = ": out of memory?" if -code == signal.SIGKILL else ""
            return f"{who} was ended by {signal.Signals(-code).name}{hint}"
        return f"{who} ended with status {code}; see its log"

    def outweighs(self, said: str) -> bool:
        """Whether a signal that ended a rank comes before what a rank said of the stage that they ended in."""
        signals = {rank: -code for rank, code in self._own().items() if code < 0}
        early = any(number not in MAY_FOLLOW for rank, number in signals.items() if rank in self.first)
        return early or (bool(signals) and bool(PEER_GONE.search(said)))

    def _own(self) -> dict[int, int]:
        return {rank: code for rank, code in self.ended.items() if rank not in self.killed}

    def settle(self, stages: dict[str, Progress]) -> tuple[str, ...]:
        """After all of it has ended: what it was killed in has failed, and what it had not begun is returned."""
        for log in self.logs:
            log.copy(all_of_it=True)
        if self.port is not None:
            self.port.close()
        left = [id for id in self.stages if stages[id].state not in ENDED]
        failed = [id for id in self.stages if stages[id].state == "failed"]
        begun = [id for id in left if stages[id].state in ("running", "waiting")]
        if self.was_interrupted():
            for id in left:
                stages[id].state = "interrupted"
            return ()
        said = stages[failed[-1]].error if failed and not begun else ""
        if said and len(self.processes) > 1 and self.outweighs(said):
            for id in failed:  # a training and the snapshots that it was on its way to
                stages[id].error = self.cause() if stages[id].error == said else stages[id].error
        hit = begun[:1] if begun else [] if failed else left[:1]
        for id in hit:
            stages[id].fail(self.cause())
        rest = tuple(id for id in left if id not in hit)
        for id in rest:
            stages[id].state = "pending"
        return rest


def _rank_of_cause(code: int) -> int:
    """The lower, the more likely the first cause."""
    if code < 0:
        return 0 if -code not in MAY_FOLLOW else 1
    return 2 if code not in (0, INTERRUPTED) else 3
