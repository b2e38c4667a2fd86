"""Warm child processes: a fork server that has imported the heavy modules once and never touched a GPU.

Importing the trainers costs seconds and hundreds of megabytes; a fork of the server has them at once and shares their memory.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from vlsafe.execute.process import ORPHAN_SECONDS
from vlsafe.execute.task import Task

PRELOAD = ["vlsafe.execute.preload"]
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Where the ranks of a task run: the GPUs that they see (None: those that this process sees), the port they meet at."""

    gpus: Sequence[str] | None = None
    port: int = 0

    def environment(self, rank: int, world: int) -> dict[str, str]:
        """As `torchrun` would set it on this machine alone."""
        visible = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}
        if world == 1:
            return visible
        return visible | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "GLOO_SOCKET_IFNAME": "lo",
        }


ANYWHERE = Place()


class Pool:
    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")

    def warm_up(self) -> None:
        """Start the server now, so that it imports while the plan is shown."""
        # Threads that wait spin for a moment only. Beside another busy process two that spin on are 3 to 10 times slower; two
        # that sleep at once are a quarter slower on a machine of their own.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
        # A module that asks at import whether there is a GPU must not touch one: children could not choose theirs any more.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        # "__main__" would run the launch script again in every child: it is loaded once, in the server.
        multiprocessing.set_forkserver_preload(["__main__", *PRELOAD])
        # The server is in the terminal's process group: a Ctrl-C while it imports must not end it before its stages could stop.
        # It inherits the mask; here a Ctrl-C that comes meanwhile is only delivered later. The resource tracker, which the
        # server starts where there is none, would lift the mask.
        multiprocessing.resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def start(self, task: Task, task_path: Path, place: Place = ANYWHERE) -> list[BaseProcess]:
        """The task's processes, by rank."""
        processes: list[BaseProcess] = []
        for rank in range(task.execution.num_processes):
            arguments = (str(task_path), rank_log(task, task_path, rank), place.environment(rank, task.execution.num_processes))
            processes.append(self._context.Process(target=child, args=arguments, name=f"{task.name} rank {rank}"))
            processes[-1].start()
        return processes


def rank_log(task: Task, task_path: Path, rank: int) -> str:
    """Where a rank's output goes: the main one's into the task's log, that of others beside the task."""
    return task.log if rank == 0 else str(task_path.with_name(f"{task.name}.rank{rank}.log"))


def reserve_port() -> socket.socket:
    """Bound to a free port, which nobody is given as long as it is open, but which ranks that are told may listen at."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def child(task_path: str, log: str, environment: Mapping[str, str]) -> None:
    """Runs in the new process: output goes to the log, and the process ends when its parent does."""
    os.setpgrp()  # the terminal's Ctrl-C goes to the executor alone, which then stops its workers one by one
    for name in RANK_VARIABLES:  # of whoever started the launcher as one of several
        os.environ.pop(name, None)
    os.environ.update(environment)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    threading.Thread(target=end_with_parent, daemon=True).start()
    from vlsafe.execute.worker import main

    status = main(task_path)
    sys.stdout.flush()
    sys.stderr.flush()
    # Thread pools of the libraries have nothing left to say; waiting for them costs time at every stage.
    os._exit(status)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # stop at a checkpoint
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)
