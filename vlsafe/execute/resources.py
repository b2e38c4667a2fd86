"""What a stage needs of a machine: how many processes, GPUs and threads. The local executor and Slurm go by the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vlsafe import registry
from vlsafe.cells import Cell, RunSettings
from vlsafe.errors import ConfigError
from vlsafe.plan import Stage
from vlsafe.settings import settings_of
from vlsafe.stage import TRAINING_KINDS, Execution
from vlsafe.train.split import check_split

CPU_RANKS = 2  # of a training stage with DeepSpeed where there is no GPU, to try it out


@dataclass(frozen=True)
class Needs:
    processes: int  # over all nodes
    nodes: int
    gpus: int  # on each node
    threads: int  # CPU threads of each process

    @property
    def local_processes(self) -> int:
        return self.processes // self.nodes


def needs(stage: Stage, run: RunSettings, deepspeed: bool, gpus: int, cores: int) -> Needs:
    """On nodes of `gpus` GPUs and `cores` cores. The same settings give as many threads: float sums depend on their number."""
    if one_process(stage):
        return Needs(1, 1, 0, run.threads or min(cores, 2))
    nodes = run.num_nodes if stage.kind in TRAINING_KINDS else 1
    processes = 1
    if stage.kind in TRAINING_KINDS:
        every = (gpus or min(CPU_RANKS, cores)) * nodes
        processes = run.num_processes or (every if deepspeed else nodes)
    elif stage.kind == "generate":
        processes = int(stage.settings["engine"].get("num_processes", 1))
    threads = run.threads
    if threads is None:
        alone = processes == 1 and stage.kind in ("model", "adaptation")
        threads = min(cores, 2) if alone else 1
    on_gpu = gpus > 0 and run.device != "cpu" and (stage.kind in (*TRAINING_KINDS, "generate") or runs_guard(stage))
    return Needs(processes, nodes, processes // nodes if on_gpu else 0, threads)


def one_process(stage: Stage) -> bool:
    """Whether it only converts weights, which one process does on the CPU."""
    value = stage.settings.get(stage.kind) if stage.kind in TRAINING_KINDS else None
    return value is not None and bool(getattr(registry.get(stage.kind, value["name"]), "one_process", False))


def runs_guard(stage: Stage) -> bool:
    """Whether it is a judge with a model of its own."""
    return stage.kind == "judge" and bool(registry.get("judge", stage.settings["judge"]["name"]).asks_model)  # type: ignore[attr-defined]


def check_training(stage: Stage, wanted: Needs, run: RunSettings, deepspeed: Mapping[str, Any] | None) -> None:
    """Raises `ConfigError` for a training stage that can't run in so many processes, or not with this of DeepSpeed."""
    if stage.kind not in TRAINING_KINDS:
        return
    group = "adaptation" if stage.settings.get("joint") else stage.kind
    component = registry.make(group, stage.settings[group])
    check_split(component, group, wanted.processes, run.micro_batch_size)
    if deepspeed is not None and deepspeed.get("stage") == 3 and not getattr(component, "zero3", True):
        raise ConfigError(
            f"deepspeed=zero3: {group}={component.component_name} can't train with weights split over processes; set"
            " deepspeed=zero2 or none"
        )


def together(group: Iterable[Needs]) -> Needs:
    """Of stages that share a task, one after the other."""
    all_of = list(group)
    return Needs(*(max(getattr(n, f.name) for n in all_of) for f in fields(Needs)))


def execution_of(group: Needs, run: RunSettings, deepspeed: Mapping[str, Any] | None) -> Execution:
    """How a task runs, as its worker is told; `deepspeed` holds the settings of that group, or None without it."""
    return Execution(
        threads=group.threads,
        device=run.device,
        checkpoint_seconds=run.checkpoint_seconds,
        num_processes=group.processes,
        num_nodes=group.nodes,
        micro_batch_size=run.micro_batch_size,
        gradient_checkpointing=run.gradient_checkpointing,
        deepspeed=None if deepspeed is None else dict(deepspeed),
    )


def deepspeed_settings(cell: Cell) -> dict[str, Any] | None:
    """Of a command's cells, which have one of them all; None without DeepSpeed."""
    component = cell.components["deepspeed"]
    return None if component.component_name == "none" else dict(settings_of(component))


def visible_gpus(environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them, without importing torch or touching one."""
    there = sorted(
        (p.name.removeprefix("nvidia") for p in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)), key=int
    )
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return there
    named = []
    for name in given.split(","):
        if name.strip() in ("", "-1"):  # as CUDA reads it: nothing counts from there on
            break
        named.append(name.strip())
    return named if there else []
