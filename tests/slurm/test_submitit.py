"""Hydra's own submitit launcher on a real Slurm: one job for each cell, and one sweep."""

from __future__ import annotations

import json
from collections import Counter

from tests.slurm.conftest import Site, said


def test_a_grid_as_an_array_of_submitit(site: Site, base: str) -> None:
    overrides = site.overrides("submitit", "safety_tune=none,tiny_sft", "merge=ties", "safety_tune.seed=31")
    overrides[overrides.index("hydra/launcher=slurm")] = "hydra/launcher=submitit_slurm"
    done = site.run("train.py", "-m", *overrides, "hydra.launcher.partition=main", "hydra.launcher.timeout_min=10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells are handed to hydra/launcher" in done.stdout
    jobs = [line.split("|") for line in said("sacct", "-nPX", "--format=JobID,State").split() if "_" in line]
    assert [state for _, state in jobs] == ["COMPLETED"] * 2  # an array
    events = [json.loads(line) for f in site.folder("submitit").glob("work/cells/**/*.events.jsonl") for line in f.open()]
    made = Counter(e["stage"] for e in events if e["state"] == "done")
    assert made
    assert set(made.values()) == {1}
    rows = site.results("submitit")
    assert {row["safety_tune"] for row in rows} == {"none", "tiny_sft"}
    assert {row["status"] for row in rows} == {"done"}


def test_a_job_of_submitit_that_slurm_ends_is_named(site: Site, base: str) -> None:
    overrides = site.overrides("submitit_lost", "safety_tune=tiny_sft", "merge=none", "safety_tune.seed=32")
    overrides[overrides.index("hydra/launcher=slurm")] = "hydra/launcher=submitit_slurm"
    done = site.run("train.py", "-m", *overrides, "hydra.launcher.setup=['scancel $SLURM_JOB_ID; sleep 20']")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED safety_tune" in done.stdout
    assert "its job was lost" in " ".join(done.stdout.split())
    assert {row["status"] for row in site.results("submitit_lost") if row["role"] == "adapted"} == {"done"}
