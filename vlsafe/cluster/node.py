"""One node's share of a task that runs in several processes: python -m vlsafe.cluster.node TORCHRUN-OPTIONS -- MODULE ARGUMENTS

Slurm starts it once on each node; it starts `torchrun` with the node's rank. A stop signal goes to the processes and past
torchrun, which would end them after 30 seconds, whether they have a checkpoint by then or not. Exit status: 75 where they
stopped on request, else torchrun's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from vlsafe.cluster.script import torchrun
from vlsafe.cluster.settings import WHERE

FAILED, INTERRUPTED = 1, 75
PORT_SECONDS = 10.0  # that a try before this one, which was requeued, may take to let go of the port
POLL_SECONDS = 0.5


def children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            text = stat.read_text()
            if int(text[text.rindex(")") + 2 :].split()[1]) == pid:
                yield int(stat.parent.name)


def busy_port(options: Sequence[str]) -> int | None:
    """The port that the processes are to meet at, where this node must listen there and something else does."""
    port = next((int(o.partition("=")[2]) for o in options if o.startswith("--master-port=")), None)
    deadline = time.monotonic() + PORT_SECONDS
    while port is not None and os.environ.get("SLURM_NODEID", "0") == "0":
        try:
            socket.create_server(("", port)).close()
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # the rest is for torchrun to say
                break
        if time.monotonic() > deadline:
            return port
        time.sleep(POLL_SECONDS)
    return None


def main() -> int:
    if (port := busy_port(sys.argv[1:])) is not None:
        print(
            f"error: {WHERE}.port: {port} is in use on {socket.gethostname()}: set another (without one it follows from the "
            "job's id, and the same command takes another)",
            file=sys.stderr,
        )
        return FAILED
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
