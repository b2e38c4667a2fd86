"""One node's share of a task that runs in several processes: python -m vlsafe.cluster.node TORCHRUN-OPTIONS -- MODULE ARGUMENTS

Slurm starts it once on each node; it starts `torchrun` with the node's rank. A stop signal goes to the processes and past
torchrun, which would end them after 30 seconds, whether they have a checkpoint by then or not. Exit status: 75 where they
stopped on request, else torchrun's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from vlsafe.cluster.script import torchrun

INTERRUPTED = 75
POLL_SECONDS = 0.5


def children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            text = stat.read_text()
            if int(text[text.rindex(")") + 2 :].split()[1]) == pid:
                yield int(stat.parent.name)


def main() -> int:
    stopped = False

    def on_stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGUSR1, on_stop)
    # The agent ignores it, and its children until they listen: it must not die of what is for them.
    agent = subprocess.Popen(
        [sys.executable, *torchrun(sys.argv[1:], os.environ.get("SLURM_NODEID", "0"))],
        preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    )
    signal.signal(signal.SIGTERM, lambda *_: None)  # Slurm has told the agent and its children too
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = agent.wait(timeout=POLL_SECONDS)
            return INTERRUPTED if stopped and status else status
        for pid in children(agent.pid) if stopped else ():  # again and again: they may just be starting
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)


if __name__ == "__main__":
    sys.exit(main())
