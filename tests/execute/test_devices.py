"""Who gets which GPUs, who waits, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from vlsafe.errors import ConfigError
from vlsafe.execute.devices import Machine
from vlsafe.execute.executor import Executor
from vlsafe.execute.resources import Needs, needs
from vlsafe.execute.survey import Survey, wall_seconds
from vlsafe.execute.task import group_stages
from vlsafe.plan import Plan, make_plan
from vlsafe.report.plan_view import taken
from vlsafe.store import Store

Grid = Callable[..., Any]
ALONE, MERGE = Needs(1, 1, 1, 1), Needs(1, 1, 0, 1)
GPUS = ["0", "1", "2", "3"]


def on(gpus: int) -> Needs:
    return Needs(gpus, 1, gpus, 1)


def started(machine: Machine, *wanted: Needs) -> list[tuple[str, ...] | None]:
    """The GPUs of each of `wanted`; None for one that has to wait."""
    shares = dict(machine.choose(enumerate(wanted)))
    return [shares[i].gpus if i in shares else None for i in range(len(wanted))]


def test_every_task_has_gpus_of_its_own_and_merges_run_beside() -> None:
    machine = Machine(16, GPUS, None)
    assert started(machine, on(2), MERGE, ALONE, ALONE, MERGE) == [("0", "1"), (), ("2",), ("3",), ()]
    assert started(machine, ALONE, MERGE) == [None, ()]
    machine.give_back(next(share for share in machine.shares if share.gpus == ("2",)))
    assert started(machine, ALONE) == [("2",)]


def test_a_task_that_waits_for_gpus_is_not_overtaken_by_smaller_ones() -> None:
    machine = Machine(16, GPUS, None)
    assert started(machine, ALONE, on(4), ALONE, MERGE) == [("0",), None, None, ()]
    machine.give_back(machine.shares[0])
    assert started(machine, on(4), ALONE) == [("0", "1", "2", "3"), None]


def test_a_stage_that_only_converts_weights_has_one_process_and_no_gpu(grid: Grid, tmp_path: Path) -> None:
    made = grid("+experiment=llava15_released", f"local={tmp_path}", "safety_tune=sft")
    plan = make_plan(made)
    wanted = {stage.kind: needs(stage, made[0].run, True, gpus=8, cores=16) for stage in plan.stages.values()}
    assert wanted["model"] == wanted["adaptation"] == Needs(1, 1, 0, 2)
    assert wanted["safety_tune"] == Needs(8, 1, 8, 1)


def test_cores_and_jobs_limit_what_runs_at_once() -> None:
    assert started(Machine(3, GPUS, None), on(2), ALONE, MERGE) == [("0", "1"), ("2",), None]
    assert started(Machine(16, GPUS, 2), ALONE, ALONE, MERGE) == [("0",), ("1",), None]
    assert started(Machine(2, [], None), MERGE, MERGE, MERGE) == [(), (), None]
    assert started(Machine(1, [], None), Needs(4, 1, 0, 1)) == [()]  # alone, it may have more threads than there are cores


def test_the_estimate_knows_that_tasks_wait_for_gpus(grid: Grid) -> None:
    plan = make_plan(grid("safety_tune=sft,dpo,kto"))
    groups = [g for g in group_stages(plan, plan.stages) if plan.stages[g[0]].kind == "safety_tune"]
    seconds = {g[0]: 10.0 for g in groups}
    assert len(groups) == 3

    def wall(gpus: int, each: int) -> float:
        return wall_seconds(plan, groups, seconds, lambda stage: on(each), Machine(64, GPUS[:gpus], None))

    assert [wall(4, 1), wall(4, 2), wall(4, 4), wall(1, 1)] == [10.0, 20.0, 30.0, 30.0]


def test_the_plan_shows_processes_and_gpus_where_there_are_several() -> None:
    assert taken([Needs(1, 1, 0, 2)]) == "2"
    assert taken([Needs(1, 1, 1, 1)]) == "1"
    assert taken([Needs(2, 1, 0, 1)]) == "2 × 1"
    assert taken([Needs(8, 2, 4, 3), MERGE]) == "8 × 3, 8 GPUs"


def executor(cells: Any, **run: Any) -> Executor:
    plan: Plan = make_plan(cells)
    return Executor(
        plan, Store(Path("/nowhere")), Path("/nowhere"), replace(cells[0].run, **run), Survey(set(plan.stages)), gpus=GPUS
    )


def test_more_processes_than_gpus_are_refused(grid: Grid) -> None:
    cells = grid("safety_tune=sft", "engine.num_processes=5")
    with pytest.raises(ConfigError, match=r"num_processes=8: .* there are 4 here \(0, 1, 2, 3\); set num_processes=4 or less"):
        executor(grid("safety_tune=sft"), num_processes=8).check()
    with pytest.raises(ConfigError, match=r"^engine.num_processes=5: .*set engine.num_processes=4 or less"):
        executor(cells).check()
    executor(cells, num_processes=8, device="cpu").check()
    executor(grid("safety_tune=sft"), num_processes=4).check()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("num_nodes=2",), "num_nodes=2: hydra/launcher=local is this machine alone; set hydra/launcher=slurm, or num_nodes=1"),
        (("num_processes=3", "num_nodes=2"), "num_processes=3: not a multiple of num_nodes=2"),
    ],
)
def test_several_nodes_are_refused_before_anything_runs(launch: Launch, overrides: tuple[str, ...], said: str) -> None:
    done = launch.train(*overrides)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
    assert not list(launch.outputs.glob("store/*"))
    assert not list(launch.outputs.glob("sweeps/*/sweep.json"))
