"""What stands beside the figures: marks of what was made otherwise than most, and links that follow a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.sweeps import sweep as made_up
from vlsafe.files import write_json
from vlsafe.plan import Plan, Stage, make_plan
from vlsafe.report import markdown
from vlsafe.report.layout import arrange
from vlsafe.report.outputs import cell_results, remove_links, write_cells
from vlsafe.report.results import score, write_csv
from vlsafe.report.table import render
from vlsafe.store import Store
from vlsafe.sweep import Sweep, open_sweep

Grid = Callable[..., Any]
RAN = (
    "threads", "device", "ran_on", "num_processes", "num_nodes", "micro_batch_size", "gradient_checkpointing", "deepspeed",
)  # fmt: skip
USUAL: dict[str, Any] = {
    "threads": 1, "device": "auto", "ran_on": "cpu", "num_processes": 1, "num_nodes": 1, "micro_batch_size": None,
    "deepspeed": None, "gradient_checkpointing": False, "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0",
}  # fmt: skip
ZERO3 = {"name": "zero", "stage": 3, "offload": False, "bucket_size": None, "overrides": {}}


def publish(store: Store, stage: Stage, made: Mapping[str, Any]) -> None:
    """An artifact that was made like this: how it ran, and packages."""
    folder = store.path(stage.kind, stage.key)
    folder.mkdir(parents=True)
    manifest = {"key": stage.key, "version": 1, "facts": {}, "files": {}}
    execution = {name: made[name] for name in RAN if name in made}
    packages = {name: value for name, value in made.items() if name not in execution}
    if "batch_size" in made:
        execution["settings"] = {"engine": {"batch_size": made["batch_size"]}}
        packages.pop("batch_size")
    write_json(folder / "manifest.json", {**manifest, "execution": execution, "environment": {"packages": packages}})


def planned(grid: Grid, folder: Path, *overrides: str, swept: tuple[str, ...] = ()) -> tuple[Sweep, Plan]:
    sweep = open_sweep(folder, "demo", grid(*overrides), swept)
    return sweep, make_plan(sweep.cells)


def differences(sweep: Sweep, plan: Plan, store: Store) -> dict[tuple[str, str], tuple[str, ...]]:
    states = dict.fromkeys(plan.stages, "exists")
    return {(r.choices["safety_tune"], r.role): r.execution for r in cell_results(sweep, plan, states, store)}


THREE = ("safety_tune=sft,dpo,none", "merge=ties")


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"threads": 2}, "safety_tune: threads 2, most 1"),
        ({"ran_on": "NVIDIA H100"}, "safety_tune: device NVIDIA H100, most cpu"),
        ({"ran_on": None}, ""),
        ({"torch": "2.12.0"}, "safety_tune: torch 2.12.0, most 2.13.0"),
        ({"trl": "1.15.0"}, "safety_tune: trl 1.15.0, most 1.16.0"),
        ({"num_processes": 8}, "safety_tune: num_processes 8, most 1"),
        ({"num_nodes": 2}, ""),
        ({"deepspeed": ZERO3}, "safety_tune: deepspeed zero3, most none"),
        ({"deepspeed": {**ZERO3, "offload": True}}, "safety_tune: deepspeed zero3_offload, most none"),
        ({"micro_batch_size": 4}, "safety_tune: micro_batch_size 4, most null"),
        ({"gradient_checkpointing": True}, "safety_tune: gradient_checkpointing True, most False"),
        ({"numpy": "1.0"}, ""),
    ],
)
def test_rows_whose_training_ran_otherwise_than_most_say_in_what(
    grid: Grid, tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    sweep, plan = planned(grid, tmp_path / "sweep", "seed=0,1", "safety_tune=sft,dpo", "merge=none,ties")
    store = Store(tmp_path / "store")
    odd = next(s.id for s in plan.stages.values() if s.kind == "safety_tune")
    for id, stage in plan.stages.items():
        publish(store, stage, {**USUAL, **(changed if id == odd else {})})
    states = dict.fromkeys(plan.stages, "exists")
    for result in cell_results(sweep, plan, states, store):
        cell = next(c for c in plan.cells if sweep.cell_name(c.cell) == result.cell)
        touched = cell.roles["tuned"] == odd and result.role in ("tuned", "merged")
        assert result.execution == ((difference,) if touched and difference else ())


def test_answers_that_were_made_otherwise_mark_their_row_and_no_other(grid: Grid, tmp_path: Path) -> None:
    sweep, plan = planned(grid, tmp_path / "sweep", *THREE)
    store = Store(tmp_path / "store")
    asked = {s.id: s for s in plan.stages.values() if s.kind == "generate"}
    odd = {
        e.benchmark: plan.stages[e.stage].parents["responses"]
        for c in plan.cells for e in c.evaluations if c.cell.choices["safety_tune"] == "sft" and e.role == "merged"
    }  # fmt: skip
    slow, other = odd["mw_direct"], odd["mw_wrapped"]
    for id, stage in plan.stages.items():
        usual = {**USUAL, **({"batch_size": 128} if id in asked else {})}
        made = {slow: {"batch_size": 1}, other: {"ran_on": "NVIDIA H100", "threads": 4, "trl": "1.0"}}.get(id, {})
        publish(store, stage, {**usual, **made})
    states = dict.fromkeys(plan.stages, "exists")
    found = {
        (r.choices["safety_tune"], r.role, r.benchmark): r.execution
        for r in cell_results(sweep, plan, states, store)
        if r.execution
    }
    assert found == {
        ("sft", "merged", "mw_direct"): ("generate: batch_size 1, most 128",),
        ("sft", "merged", "mw_wrapped"): ("generate: device NVIDIA H100, most cpu",),
    }


def test_a_merge_by_another_torch_is_marked_and_its_threads_are_not(grid: Grid, tmp_path: Path) -> None:
    sweep, plan = planned(grid, tmp_path / "sweep", *THREE)
    merges = [s for s in plan.stages.values() if s.kind == "merge"]
    for stage in plan.stages.values():
        made = {merges[0].id: {"torch": "2.12.0"}, merges[1].id: {"threads": 8}}.get(stage.id, {})
        publish(Store(tmp_path), stage, {**USUAL, **made})
    found = {said for said in differences(sweep, plan, Store(tmp_path)).values() if said}
    assert found == {("merge: torch 2.12.0, most 2.13.0",)}


def test_kinds_of_training_are_not_compared_with_each_other(grid: Grid, tmp_path: Path) -> None:
    sweep, plan = planned(grid, tmp_path / "sweep", *THREE)
    for stage in plan.stages.values():
        publish(Store(tmp_path), stage, {**USUAL, "threads": 2 if stage.kind == "adaptation" else 1})
    assert set(differences(sweep, plan, Store(tmp_path)).values()) == {()}


def test_what_a_manifest_does_not_say_and_what_is_not_there_is_not_compared(grid: Grid, tmp_path: Path) -> None:
    sweep, plan = planned(grid, tmp_path / "sweep", *THREE)
    store = Store(tmp_path)
    tuned = [s for s in plan.stages.values() if s.kind == "safety_tune"]
    for stage in plan.stages.values():
        publish(store, stage, {} if stage == tuned[0] else USUAL)
    (store.path("safety_tune", tuned[1].key) / "manifest.json").write_text("{")
    assert set(differences(sweep, plan, store).values()) == {()}


def test_the_table_and_the_markdown_mark_such_rows_and_explain_it_once(tmp_path: Path) -> None:
    said = ("safety_tune: threads 2, most 1", "safety_tune: torch 2.12, most 2.13")
    results = [
        replace(r, execution=said if r.choices["safety_tune"] == "sft" and r.role in ("tuned", "merged") else ())
        for r in made_up(tmp_path)
    ]
    grid = arrange(score(results))
    assert {line.labels[:3] for line in grid.lines if "‡" in line.labels[0]} == {
        ("tuned‡", "sft", "none"), ("merged‡", "sft", "ties"),
    }  # fmt: skip
    wide = [line.plain for line in render(grid, 160)]
    assert wide[-1] == "‡ made otherwise than most · " + " · ".join(said)
    for width in (40, 80):
        lines = [line.plain for line in render(grid, width)]
        assert max(map(len, lines)) <= width
        assert all(part in "\n".join(lines) for part in ("‡ made otherwise than most", *said))
    shown = markdown.render(grid)
    assert shown.count("| merged‡ |") == 1
    assert shown.splitlines()[-1] == wide[-1].replace("_", "\\_")
    plain = [replace(r, execution=()) for r in results]
    assert "‡" not in markdown.render(arrange(score(plain))) + "\n".join(x.plain for x in render(arrange(score(plain)), 80))
    write_csv(score(results), tmp_path / "marked.csv")
    write_csv(score(plain), tmp_path / "plain.csv")
    assert (tmp_path / "marked.csv").read_text() == (tmp_path / "plain.csv").read_text()


def test_links_of_cells_that_are_named_otherwise_now_go_and_real_files_stay(grid: Grid, tmp_path: Path) -> None:
    store, cells = Store(tmp_path / "store"), tmp_path / "sweep" / "cells"

    def write(*overrides: str, swept: tuple[str, ...]) -> set[str]:
        sweep, plan = planned(grid, tmp_path / "sweep", *overrides, swept=swept)
        for stage in plan.stages.values():
            store.path(stage.kind, stage.key).mkdir(parents=True, exist_ok=True)
        write_cells(sweep, plan, dict.fromkeys(plan.stages, "exists"), store)
        return {sweep.cell_name(c.cell) for c in plan.cells}

    before = write("merge=none,ties", swept=("merge",))
    (cells / "llava+sft+ties" / "mine").mkdir()
    (cells / "llava+sft+ties" / "mine" / "notes.txt").write_text("read me")
    (cells / "readme.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").write_text("mine")
    (cells / "elsewhere").symlink_to(tmp_path / "other")
    after = write("seed=0,1", "merge=none,ties", swept=("seed", "merge"))
    assert not before & after
    assert {p.name for p in cells.iterdir()} == {*after, "llava+sft+ties", "readme.txt", "elsewhere"}
    assert [p.name for p in (cells / "llava+sft+ties").rglob("*")] == ["mine", "notes.txt"]
    assert (tmp_path / "other" / "file.txt").exists()
    assert all((cells / name / "adapted").is_symlink() for name in after)
    assert any(store.root.iterdir())


def test_a_link_is_removed_and_never_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file.txt").write_text("x")
    (tmp_path / "cell" / "labels").mkdir(parents=True)
    for place in ("cell/base", "cell/labels/one"):
        (tmp_path / place).symlink_to(tmp_path / "target")
    remove_links(tmp_path / "cell")
    assert not (tmp_path / "cell").exists()
    assert (tmp_path / "target" / "file.txt").read_text() == "x"
