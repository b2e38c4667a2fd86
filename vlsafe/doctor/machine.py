"""This machine: packages, compiler, Slurm, W&B's key, and its GPUs and memory as far as they are told without touching one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.cells import Cell
from vlsafe.doctor.finding import Finding
from vlsafe.errors import VlsafeError
from vlsafe.execute.resources import deepspeed_settings, visible_gpus
from vlsafe.plan import Plan
from vlsafe.stage import TRAINING_KINDS
from vlsafe.tracking import credentials
from vlsafe.train.deepspeed import check_compiler

# module → (what installs it, when it is needed); what vlsafe itself requires comes with it.
CORE = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "huggingface_hub", "PIL")


def packages(cells: Sequence[Cell]) -> list[Finding]:
    wanted = dict.fromkeys(CORE, "make setup (or pip install --editable .)")
    if deepspeed_settings(cells[0]) is not None:
        wanted["deepspeed"] = "pip install deepspeed (Linux only), or set deepspeed=none"
    name = cells[0].components["tracking"].component_name
    if name in ("wandb", "trackio"):
        wanted[name] = f"pip install {name}, or set tracking=none"
    lost = {module: mend for module, mend in wanted.items() if importlib.util.find_spec(module) is None}
    findings = [Finding("missing", f"package {module}", "is not installed", mend) for module, mend in lost.items()]
    if not findings:
        findings = [Finding("fine", "packages", f"{len(wanted)} are installed: {', '.join(wanted)}")]
    return findings + [ready for cell in cells for ready in readiness(cell)][:1]


def readiness(cell: Cell) -> list[Finding]:
    """What a model's own check says: a package that holds it, for one."""
    check = getattr(cell.components["model"], "check_ready", None)
    try:
        if check is not None:
            check()
    except VlsafeError as error:
        said, _, mend = str(error).partition(": ")
        return [Finding("missing", f"model={cell.choices['model']}", said, mend)]
    return []


def compiler(cells: Sequence[Cell], plan: Plan, to_run: set[str], launcher: Mapping[str, Any] | None) -> list[Finding]:
    """DeepSpeed compiles one operation for ranks on the CPU, and none for GPUs."""
    on_cpu = cells[0].run.device == "cpu" or (not visible_gpus() and launcher is None)
    trains = any(plan.stages[id].kind in TRAINING_KINDS for id in to_run)
    if deepspeed_settings(cells[0]) is None or not on_cpu or not trains:
        return []
    try:
        check_compiler()
    except VlsafeError as error:
        said, _, mend = str(error).removeprefix("deepspeed: ").rpartition(": ")
        return [Finding("missing", "compiler", said, mend)]
    return [Finding("fine", "compiler", "g++ and ninja are there, for DeepSpeed's ranks on the CPU")]


def slurm(launcher: Mapping[str, Any] | None) -> list[Finding]:
    if launcher is None:
        return []
    if shutil.which("sbatch") is None:
        return [Finding("missing", "Slurm", "hydra/launcher=slurm, and there is no sbatch on PATH",
                        "run this on the cluster's login node (perhaps: module load slurm), or leave out hydra/launcher")]  # fmt: skip
    return [Finding("fine", "Slurm", f"sbatch is {shutil.which('sbatch')}")]


def tracking(cells: Sequence[Cell]) -> list[Finding]:
    component = cells[0].components["tracking"]
    if component.component_name != "wandb":
        return []
    mode = component.mode
    if credentials.there():
        return [Finding("fine", "W&B", f"a key for {credentials.host()} is there")]
    if mode == "online":
        return [Finding("missing", "W&B", f"tracking.mode=online, and no key for {credentials.host()}",
                        "wandb login (or set WANDB_API_KEY), or set tracking.mode=auto")]  # fmt: skip
    return [Finding("note", "W&B", "no key: runs are recorded offline", "wandb login, or set tracking=none")]


def gpu_memory() -> list[int]:
    """Bytes of each GPU that may be used, as the driver tells them; empty without one."""
    if not visible_gpus() or shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        every = [int(line) * 2**20 for line in said.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    chosen = [every[int(name)] for name in visible_gpus() if name.isdigit() and int(name) < len(every)]
    return chosen or every


def host_memory() -> int:
    """Bytes of this machine's memory that are free to be used, its control group's limit included."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        for line in _lines(Path(file)):
            if line.strip().isdigit():
                available = min(available, int(line))
    return available


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
