"""Sweeps: the same command finds the same one, cells get names of their own, and estimates follow the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlsafe.errors import ConfigError
from vlsafe.execute.devices import Machine
from vlsafe.execute.resources import Needs
from vlsafe.execute.survey import wall_seconds
from vlsafe.execute.task import group_stages
from vlsafe.plan import make_plan
from vlsafe.sweep import default_name, load_sweep, open_sweep, save_record

Grid = Callable[..., Any]


def test_the_name_follows_from_the_overrides_and_not_from_their_order() -> None:
    assert default_name(["safety_tune=sft,dpo", "merge=ties"]) == "merge-ties_safety_tune-sft,dpo"
    assert default_name(["merge=ties", "safety_tune=sft,dpo"]) == "merge-ties_safety_tune-sft,dpo"
    assert default_name(["+experiment=demo"]) == "experiment-demo"
    assert default_name([]) == "default"


def test_where_and_how_make_no_other_name() -> None:
    bare = default_name(["merge=ties"])
    assert default_name(["merge=ties", "jobs=4", "threads=1", "store=/elsewhere", "hydra.verbose=true", "live=false"]) == bare
    assert default_name(["merge=ties", "seed=1"]) != bare


def test_long_names_stay_short_and_different() -> None:
    long = [f"adaptation.projector.steps={','.join(map(str, range(n)))}" for n in (60, 61)]
    names = [default_name([o]) for o in long]
    assert all(len(n) <= 80 for n in names)
    assert names[0] != names[1]


@pytest.mark.parametrize("hostile", ["merge.scope=../../x", "merge.scope=$(reboot)", "merge.scope='a b;c'"])
def test_a_name_is_one_harmless_folder(hostile: str) -> None:
    name = default_name([hostile])
    assert "/" not in name.replace("..", "")
    assert not set(name) & set(" ;$()'\"")


def test_cells_that_come_out_the_same_are_one(grid: Grid, tmp_path: Path) -> None:
    cells = grid("merge=none,ties", "merge.density=0.2,0.5")
    assert len(cells) == 4
    sweep = open_sweep(tmp_path / "s", "s", cells, ["merge", "merge.density"])
    assert [sweep.cell_name(c) for c in sweep.cells] == [
        "llava+sft+none",
        "llava+sft+ties+merge.density=0.2",
        "llava+sft+ties+merge.density=0.5",
    ]


def test_cell_names_are_unique_whatever_is_swept(grid: Grid, tmp_path: Path) -> None:
    overrides = ("safety_tune.order=after,before", "seed=0,1", "judge=exact,keyword", "eval.limit=5,6", "merge=linear")
    sweep = open_sweep(tmp_path / "s", "s", grid(*overrides), [o.partition("=")[0] for o in overrides[:-1]])
    names = [sweep.cell_name(c) for c in sweep.cells]
    assert len(names) == len(set(names)) == 16
    assert sweep.extra_axes == ("eval.limit",)


def test_a_sweep_comes_back_from_its_record(grid: Grid, tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path / "s", "s", grid("seed=0,1", "merge=linear"), ["seed"])
    save_record(sweep)
    again = load_sweep(tmp_path / "s")
    assert [again.cell_name(c) for c in again.cells] == [sweep.cell_name(c) for c in sweep.cells]
    assert list(make_plan(again.cells).stages) == list(make_plan(sweep.cells).stages)


def test_seeds_and_options_are_added_and_another_recipe_is_not(grid: Grid, tmp_path: Path) -> None:
    save_record(open_sweep(tmp_path / "s", "s", grid("merge=linear"), []))
    save_record(open_sweep(tmp_path / "s", "s", grid("merge=linear", "seed=1"), []))
    grown = open_sweep(tmp_path / "s", "s", grid("merge=ties", "safety_tune=dpo"), [])
    assert len(grown.cells) == 3
    with pytest.raises(ConfigError, match=r"another base \(safety_tune\.helpful: 0\.\d+ there, 0\.9 here\)"):
        open_sweep(tmp_path / "s", "s", grid("safety_tune.helpful=0.9"), [])
    swept = open_sweep(tmp_path / "s", "s", grid("safety_tune.helpful=0.8,0.9"), ["safety_tune.helpful"])
    assert len(swept.cells) == 4


def test_an_unknown_sweep_names_those_that_exist(tmp_path: Path, grid: Grid) -> None:
    save_record(open_sweep(tmp_path / "there", "there", grid(), []))
    with pytest.raises(ConfigError, match=r"no sweep 'elsewhere' .*there are: there"):
        load_sweep(tmp_path / "elsewhere")


def test_evaluation_of_a_model_is_one_task(grid: Grid) -> None:
    plan = make_plan(grid("safety_tune=none,sft", "merge=none,ties"))
    groups = group_stages(plan, plan.stages)
    models = {s.parents["model"] for s in plan.stages.values() if s.kind == "generate"}
    assert len(groups) == sum(plan.counts()[k] for k in ("model", "adaptation", "safety_tune", "merge")) + len(models)
    for group in groups:
        assert [list(plan.stages).index(id) for id in group] == sorted(list(plan.stages).index(id) for id in group)


def test_wall_time_is_the_critical_path_when_there_is_room_and_the_sum_when_there_is_none(grid: Grid) -> None:
    plan = make_plan(grid("safety_tune=sft,dpo", "merge=linear"))
    groups = [g for g in group_stages(plan, plan.stages) if plan.stages[g[0]].kind not in ("generate", "judge")]
    seconds = {
        g[0]: {"model": 50.0, "adaptation": 50.0, "safety_tune": 20.0, "merge": 1.0}[plan.stages[g[0]].kind] for g in groups
    }

    def wall(jobs: int) -> float:
        return wall_seconds(plan, groups, seconds, lambda stage: Needs(1, 1, 0, 1), Machine(8, [], jobs))

    assert wall(8) == 171.0
    assert wall(1) == 192.0
