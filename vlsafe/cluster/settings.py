"""The settings of `hydra/launcher=slurm`, which live in `hydra.launcher`: what each kind of stage asks a site for.

hydra.launcher.resources.adaptation.gpus_per_node=8  hydra.launcher.resources.default.partition=long
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from vlsafe.errors import ConfigError
from vlsafe.settings import AtLeast, Between, NonNegativeInt, PositiveInt, build

WHERE = "hydra.launcher"
FINISH = "report"  # the resources of the job that a sweep ends with
OWN_OPTIONS = {  # of sbatch: what to set instead
    "nodes": "nodes", "N": "nodes", "gres": "gpus_per_node", "gpus-per-node": "gpus_per_node", "cpus-per-task": "cpus_per_task",
    "c": "cpus_per_task", "mem": "mem", "time": "time", "t": "time", "partition": "partition", "p": "partition",
}  # fmt: skip
SET_BY_US = ("job-name", "comment", "dependency", "kill-on-invalid-dep", "output", "error", "open-mode", "signal", "requeue",
             "no-requeue", "parsable", "ntasks", "ntasks-per-node", "wrap", "array", "hold", "test-only")  # fmt: skip
OptionValue = str | int | bool | None


@dataclass(frozen=True)
class Resources:
    """Of one job. What is null here is taken from `default`; what is null there too, from the stage or the site."""

    nodes: PositiveInt | None = None
    gpus_per_node: NonNegativeInt | None = None  # null: what the stage's processes need where the partition has GPUs
    cpus_per_task: PositiveInt | None = None  # of each process; null: its threads
    mem: str | int | None = None  # of each node, as `32G`; null: the site's default
    time: str | int | None = None  # as sbatch has it: minutes, H:M:S or D-H:M:S; null: the partition's default
    partition: str | None = None  # null: the site's default
    sbatch: dict[str, OptionValue] = field(default_factory=lambda: {"account": None, "qos": None, "constraint": None})


@dataclass(frozen=True)
class StageResources:
    default: Resources = Resources()
    model: Resources = Resources()
    adaptation: Resources = Resources()
    safety_tune: Resources = Resources()
    merge: Resources = Resources()
    evaluation: Resources = Resources()  # all evaluation of one model is one job
    report: Resources = Resources()  # the job that writes the results


@dataclass(frozen=True)
class SlurmSettings:
    resources: StageResources = StageResources()
    wait: bool = False  # show the live view until the sweep is through; the jobs go on without it too
    setup: tuple[str, ...] = ()  # lines of the job script before the command: module load, conda activate, ...
    srun_args: tuple[str, ...] = ()
    python: str | None = None  # the interpreter on the compute nodes; null: the one that submits
    max_submitted: Annotated[int, AtLeast(3)] | None = None  # most jobs of yours in the queue; null: until the site refuses
    max_requeues: NonNegativeInt = 3  # how often a job goes back into the queue after a time limit, a preemption, a lost node
    signal_seconds: Annotated[int, Between(1, 65535)] = 120  # how long before the time limit a stage is told to checkpoint
    port: Annotated[int, Between(1024, 65535)] | None = None  # of the processes' rendezvous; null: from the job's id

    def of(self, kind: str) -> Resources:
        """Those of a kind of stage, `default` filled in."""
        own, default = getattr(self.resources, group_of(kind)), self.resources.default
        given = {f.name: getattr(own, f.name) for f in dataclasses.fields(Resources)}
        filled = {name: getattr(default, name) if value is None else value for name, value in given.items()}
        filled["sbatch"] = {**default.sbatch, **{k: v for k, v in own.sbatch.items() if v is not None}}
        return Resources(**filled)

    def source(self, kind: str, name: str) -> str:
        """The dotted name of the setting that `of(kind)` has its value from."""
        own: Resources = getattr(self.resources, group_of(kind))
        there = (
            getattr(own, name, None) is not None
            if name in {f.name for f in dataclasses.fields(Resources)}
            else own.sbatch.get(name) is not None
        )
        return f"{WHERE}.resources.{group_of(kind) if there else 'default'}.{name}"


def group_of(kind: str) -> str:
    """The name in `resources` of a stage's kind."""
    return "evaluation" if kind in ("generate", "judge") else kind


def slurm_settings(values: Mapping[str, Any]) -> SlurmSettings:
    """Raises `ConfigError` for what can't be, naming the setting."""
    settings = build(SlurmSettings, values, WHERE)
    for f in dataclasses.fields(StageResources):
        check_resources(getattr(settings.resources, f.name), f"{WHERE}.resources.{f.name}", settings.signal_seconds)
    for name in ("setup", "srun_args"):
        for i, line in enumerate(getattr(settings, name)):
            if name == "srun_args":
                one_line(line, f"{WHERE}.{name}[{i}]")
    one_line(settings.python, f"{WHERE}.python")
    return settings


def check_resources(resources: Resources, where: str, signal_seconds: int) -> None:
    for name in ("mem", "time", "partition"):
        one_line(getattr(resources, name), f"{where}.{name}")
    if resources.time is not None:
        seconds = seconds_of(resources.time, f"{where}.time")
        if 0 < seconds <= signal_seconds:
            raise ConfigError(
                f"{where}.time={resources.time}: a stage is told to stop {signal_seconds} seconds before its time limit, so "
                f"give it more than that, or set {WHERE}.signal_seconds"
            )
    if isinstance(resources.mem, str) and not re.fullmatch(r"\d+[KMGTkmgt]?B?", resources.mem):
        raise ConfigError(f"{where}.mem={resources.mem}: write it as 32G or 4000M")
    for option, value in resources.sbatch.items():
        if option in OWN_OPTIONS:
            raise ConfigError(f"{where}.sbatch.{option}: set {where}.{OWN_OPTIONS[option]} instead")
        if option in SET_BY_US or not re.fullmatch(r"[a-z][a-z0-9-]*", option):
            raise ConfigError(
                f"{where}.sbatch.{option}: not one that can be set here; write sbatch's long name, without dashes"
            )
        one_line(value, f"{where}.sbatch.{option}")


def one_line(value: Any, where: str) -> None:
    """What becomes part of a line of the job script must be one: a line end would begin another."""
    if isinstance(value, str) and (not value.strip() or any(ord(c) < 32 for c in value)):
        raise ConfigError(f"{where}={value!r}: must be one line of text")


def seconds_of(time: str | int, where: str) -> int:
    """Of a time limit as sbatch reads it: `90`, `90:30`, `1:30:00`, `2-12`, `2-12:30`; 0 is no limit."""
    if str(time).upper() in ("INFINITE", "UNLIMITED"):
        return 0
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    if match is None:
        raise ConfigError(f"{where}={time}: no time that sbatch knows; write minutes, H:M:S or D-H:M:S")
    days, a, b, c = (None if g is None else int(g) for g in match.groups())
    assert a is not None
    if days is not None:
        return days * 86400 + a * 3600 + (b or 0) * 60 + (c or 0)
    if c is not None:
        return a * 3600 + (b or 0) * 60 + c
    return a * 60 + (b or 0)
