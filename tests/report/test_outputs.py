"""What stands beside the figures: marks of models that were trained otherwise than most, and links that follow a sweep."""

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
USUAL = {"threads": 1, "device": "auto", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"}


def publish(store: Store, stage: Stage, made: Mapping[str, Any]) -> None:
    """An artifact that was made like this: threads and device, and packages."""
    folder = store.path(stage.kind, stage.key)
    folder.mkdir(parents=True)
    manifest = {"key": stage.key, "version": 1, "facts": {}, "files": {}}
    execution = {name: made[name] for name in ("threads", "device") if name in made}
    packages = {name: value for name, value in made.items() if name not in execution}
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
        ({"device": "cuda"}, "safety_tune: device cuda, most auto"),
        ({"torch": "2.12.0"}, "safety_tune: torch 2.12.0, most 2.13.0"),
        ({"trl": "1.15.0"}, "safety_tune: trl 1.15.0, most 1.16.0"),
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
    assert wide[-1] == "‡ trained otherwise than most · " + " · ".join(said)
    for width in (40, 80):
        lines = [line.plain for line in render(grid, width)]
        assert max(map(len, lines)) <= width
        assert all(part in "\n".join(lines) for part in ("‡ trained otherwise than most", *said))
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
