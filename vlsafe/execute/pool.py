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
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from vlsafe.execute.task import Task

PRELOAD = ["vlsafe.execute.preload"]
ORPHAN_SECONDS = 20.0  # how long a stage may take to stop once its parent is gone


class Pool:
    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")

    def warm_up(self) -> None:
        """Start the server now, so that it imports while the plan is shown."""
        # Threads that wait spin for a moment only. Beside another busy process two that spin on are 3 to 10 times slower; two
        # that sleep at once are a quarter slower on a machine of their own.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
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

    def start(self, task: Task, task_path: Path) -> BaseProcess:
        process = self._context.Process(target=child, args=(str(task_path), task.log), name=task.name)
        process.start()
        return process


def child(task_path: str, log: str) -> None:
    """Runs in the new process: output goes to the log, and the process ends when its parent does."""
    os.setpgrp()  # the terminal's Ctrl-C goes to the executor alone, which then stops its workers one by one
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
