"""Where a result came from: versions, machine and code state for manifests. No environment variables, so no secrets."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlsafe.plugins import installed

PACKAGES = (
    "vlsafe",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "hydra-core",
    "safetensors",
    "numpy",
)


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> int:
    """The most memory that this process has held so far, in MiB: of the GPU where it uses one, else resident."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def ran_on() -> str:
    """What this process has computed on: the name of its GPU where it has used one, else `cpu`."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return "cpu"


@functools.cache
def code_state() -> dict[str, str | bool]:
    """The commit of the checkout that this package runs from, and whether it was changed since; empty outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        done = [
            subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done[0], "modified": bool(done[1])}


@functools.cache
def environment() -> dict[str, object]:
    packages = {}
    for name in (*PACKAGES, *sorted({plugin.package for plugin in installed()})):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cpu_count(),
        "packages": packages,
        "code": code_state(),
    }
