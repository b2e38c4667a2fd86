"""Tasks: what one worker process is given, as frozen JSON. A training stage, with the snapshots that are kept of it, or a
merge is a task of its own; all evaluation of one model is one task, so that the model is loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.execute.resources import runs_guard
from vlsafe.execute.unchanged import contents_of
from vlsafe.files import read_json, write_json
from vlsafe.plan import Plan, Stage
from vlsafe.settings import build
from vlsafe.stage import Execution


@dataclass(frozen=True)
class StageOrder:
    """One stage as a worker sees it. `parents` maps the names that the stage uses to `kind/key`."""

    kind: str
    key: str
    version: int
    spec: dict[str, Any]
    settings: dict[str, Any]
    parents: dict[str, str]
    label: str
    cost_class: str
    cost_units: float
    family: str | None
    training: str | None = None  # for a snapshot: the key of the training that it is taken from,
    step: int | None = None  # and after which step of its last phase
    contents: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # of the local files that it reads, by path, when it was planned
    verdicts: str | None = None  # of a filtered training: what its judge says is shared under this name

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.key}"

    @property
    def training_key(self) -> str:
        """The key that the work belongs to: leases and what a next try takes over go by it."""
        return self.training or self.key


@dataclass(frozen=True)
class Task:
    name: str  # fit for a file name, unique in its sweep
    stages: tuple[StageOrder, ...]  # parents first
    store: str
    execution: Execution
    events: str  # the file that the worker appends its events to
    log: str

    def save(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))


def load_task(path: Path) -> Task:
    return build(Task, read_json(path), "task")


def order_of(stage: Stage) -> StageOrder:
    return StageOrder(
        stage.kind, stage.key, stage.version, dict(stage.spec), dict(stage.settings), dict(stage.parents),
        stage.label, stage.cost_class, stage.cost_units, stage.family, stage.training, stage.step,
        contents_of(stage.settings), stage.verdicts,
    )  # fmt: skip


def group_stages(plan: Plan, to_run: Collection[str]) -> list[tuple[str, ...]]:
    """The stages of `to_run` as groups that share a process, each in an order in which parents come first."""
    groups: dict[str, list[str]] = {}
    for id, stage in plan.stages.items():
        if id in to_run:
            trained = f"{stage.kind}/{stage.training_key}"
            groups.setdefault(evaluated_model(plan, stage) or trained, []).append(id)
    return [tuple(sorted(group, key=lambda id: place_in_task(plan.stages[id]))) for group in groups.values()]


def place_in_task(stage: Stage) -> tuple[float, bool]:
    """Puts the snapshots of a training in order, and what it ends with behind them; judges with a model of their own last, so
    that the model that answers and the one that judges are each loaded once, and never both."""
    return float("inf") if stage.step is None else stage.step, runs_guard(stage)


def evaluated_model(plan: Plan, stage: Stage) -> str | None:
    """A name for the evaluation of the model that a `generate` or `judge` stage is about."""
    parents: Mapping[str, str] = stage.parents
    if stage.kind == "judge":
        parents = plan.stages[parents["responses"]].parents
    return f"evaluation of {parents['model']}" if stage.kind in ("generate", "judge") else None


def with_snapshots(orders: Sequence[StageOrder]) -> list[list[StageOrder]]:
    """Each training behind the snapshots that are kept of it, by step; any other stage by itself."""
    groups: dict[str, list[StageOrder]] = {}
    for order in orders:
        groups.setdefault(f"{order.kind}/{order.training_key}", []).append(order)
    return list(groups.values())
