"""What a worker's process is told: to stop, its threads, its GPUs; and what it does when its parent is gone."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

ORPHAN_SECONDS = 20.0  # how long a stage may take to stop once its parent is gone
LAUNCHER_POLL_SECONDS = 1.0


class StopRequest:
    """Set by a signal's handler. Without a lock: a second signal may come while the first one is handled."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


def set_path() -> None:
    """What DeepSpeed compiles with (ninja) lies beside the interpreter, also where no environment was activated."""
    own = str(Path(sys.executable).parent)
    if own not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", "")])


def set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def given_gpus() -> dict[str, str]:
    """The GPUs that this process was given, where somebody chose some."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {} if given is None else {"gpus": given}


def end_with_launcher() -> None:
    """A launcher that is killed can't end its ranks: they stop at a checkpoint by themselves, or end without one in the end."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(LAUNCHER_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)
