"""`adaptation.checkpoints=N`: models on the way of an adaptation, evaluated like any other, from the one training there is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from vlsafe.errors import ConfigError
from vlsafe.plan import make_plan

Grid = Callable[..., Any]


def test_checkpoints_move_no_key_of_what_was_there(grid: Grid) -> None:
    without, some, more = (make_plan(grid("merge=ties", f"adaptation.checkpoints={n}")) for n in (0, 2, 4))
    assert without.stages.keys() < some.stages.keys() < more.stages.keys()
    assert list(some.cells[0].snapshots) == [0, 225]
    assert list(more.cells[0].snapshots) == [0, 112, 225, 337]
    asked = {(e.role, e.step) for e in some.cells[0].evaluations}
    assert asked == {(r, None) for r in some.cells[0].roles} | {("adapted", 0), ("adapted", 225)}


def test_an_adaptation_after_tuning_has_checkpoints_of_its_own(grid: Grid) -> None:
    after, before = (make_plan(grid(f"safety_tune.order={o}", "adaptation.checkpoints=1")) for o in ("after", "before"))
    assert after.cells[0].snapshots.keys() == before.cells[0].snapshots.keys()
    assert after.cells[0].snapshots[0] != before.cells[0].snapshots[0]


def test_more_checkpoints_than_steps_are_refused(grid: Grid) -> None:
    with pytest.raises(ConfigError, match=r"adaptation.checkpoints=451: the phase that they are taken from has 450 steps"):
        grid("adaptation.checkpoints=451")


def test_a_sweep_with_checkpoints(launch: Launch) -> None:
    command = ("sweep=curve", "safety_tune=none", "merge=none", "eval.benchmarks=[mw_direct,mw_helpful_picture]")
    folder = launch.outputs / "sweeps" / "curve"
    done = launch.train(*command, "adaptation.checkpoints=2")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [r for r in csv.DictReader((folder / "results.csv").open()) if r["role"] == "adapted"]
    assert {r["step"] for r in rows} == {"", "0", "3"}
    assert {(r["step"], r["benchmark"]) for r in rows} == {
        (s, b) for s in ("", "0", "3") for b in ("mw_direct", "mw_helpful_picture")
    }
    cell = json.loads((folder / "cells.jsonl").read_text())
    assert set(cell["checkpoints"]) == {"0", "3"}
    manifests = {p: json.loads((p / "manifest.json").read_text()) for p in (launch.outputs / "store" / "adaptation").iterdir()}
    assert sorted(m["facts"].get("step", -1) for m in manifests.values()) == [-1, 0, 3]
    assert [p for p in manifests if (p / "train_log.jsonl").exists()] == [
        Path(folder / "cells" / cell["cell"] / "adapted").resolve()
    ]

    # More of them later: one more training as far as the last that is missing, and what there is stays.
    more = launch.train(*command, "adaptation.checkpoints=3")
    assert more.returncode == 0, more.stdout + more.stderr
    after = {p: json.loads((p / "manifest.json").read_text()) for p in (launch.outputs / "store" / "adaptation").iterdir()}
    assert {p: after[p] for p in manifests} == manifests
    assert sorted(
        m["facts"].get("step", m["facts"]["phases"]["instruct"]["steps"] if "phases" in m["facts"] else -1)
        for m in after.values()
    ) == [0, 2, 3, 4, 6]
    rows = [r for r in csv.DictReader((folder / "results.csv").open()) if r["role"] == "adapted"]
    assert {r["step"] for r in rows} == {"", "0", "2", "4"}
    assert not list((launch.outputs / "store" / ".scratch").iterdir())
    links = {p.name for p in (folder / "cells" / cell["cell"]).iterdir() if p.name.startswith("adapted")}
    assert links == {"adapted", "adapted-step-0", "adapted-step-2", "adapted-step-4"}

    # Asked without, the sweep keeps what it has.
    assert launch.train(*command).returncode == 0
    assert rows == [r for r in csv.DictReader((folder / "results.csv").open()) if r["role"] == "adapted"]


def test_one_command_keeps_one_number_of_checkpoints(launch: Launch) -> None:
    refused = launch.train("adaptation.checkpoints=1,2")
    assert refused.returncode == 2
    assert "adaptation.checkpoints: one command has one value of it" in refused.stderr
