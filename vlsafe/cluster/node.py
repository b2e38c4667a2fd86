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


def children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            text = stat.read_text()
            if int(text[text.rindex(")") + 2 :].split()[1]) == pid:
                yield int(stat.parent.name)


def main() -> int:
    stopped = False
    agent: subprocess.Popen[bytes] | None = None

    def on_stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        for pid in children(agent.pid) if agent is not None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the agent inherits it: it must not die of what is for its children
    agent = subprocess.Popen([sys.executable, *torchrun(sys.argv[1:], os.environ.get("SLURM_NODEID", "0"))])
    signal.signal(signal.SIGUSR1, on_stop)
    signal.signal(signal.SIGTERM, lambda *_: None)  # Slurm has told the agent and its children too
    status = agent.wait()
    return INTERRUPTED if stopped and status else status


if __name__ == "__main__":
    sys.exit(main())
