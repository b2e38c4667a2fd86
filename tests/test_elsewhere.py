"""Hydra's own launchers: each cell is a job, and the sweep is one all the same."""

from __future__ import annotations

import csv
import json
from collections import Counter

from tests.conftest import Launch


def test_a_grid_as_jobs_of_submitit(launch: Launch) -> None:
    """One cell fails in a stage of its own, by a setting that the other lacks; both need one base."""
    done = launch.train(
        "hydra/launcher=submitit_local", "sweep=jobs", "safety_tune=none,tiny_sft", "eval.limit=4",
        "safety_tune.optimization.learning_rate=1e30",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 of 2 cells are handed to hydra/launcher" in done.stdout
    assert "FAILED safety_tune tiny › tiny › tiny_sft: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    folder = launch.outputs / "sweeps" / "jobs"
    assert [p.name for p in (launch.outputs / "sweeps").iterdir()] == ["jobs"]
    status = {c["cell"]: c["status"] for c in map(json.loads, (folder / "cells.jsonl").read_text().splitlines())}
    assert sorted(status.values()) == ["done", "failed"]
    with (folder / "results.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["cell"] for row in rows} == set(status)
    assert {row["role"] for row in rows if row["status"] == "done"} >= {"base", "adapted"}
    lines = [line for path in folder.glob("work/cells/*/work/*/*.events.jsonl") for line in path.read_text().splitlines()]
    made = Counter(e["stage"] for e in map(json.loads, lines) if e["state"] == "done")
    assert made
    assert set(made.values()) == {1}  # what both need was made by one
