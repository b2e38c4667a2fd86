"""Whole sweeps through sbatch: each unique stage is one job, and what comes out is what a local run computes."""

from __future__ import annotations

import csv
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Launch
from tests.slurm.conftest import Site, queue, said, until
from vlsafe.files import read_json

GRID = ("safety_tune=tiny_sft,tiny_dpo", "merge=none,ties")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return [{k: v for k, v in row.items() if k != "sweep"} for row in csv.DictReader(handle)]


def test_a_grid_is_a_job_for_each_unique_stage_and_ends_as_a_local_run(site: Site, here: Launch) -> None:
    told = site.submit("grid", *GRID)
    jobs = site.record("grid")["tasks"]
    kinds = Counter(name.partition("-")[0] for name in jobs)
    assert kinds == {"model": 2, "adaptation": 1, "safety_tune": 2, "merge": 2, "generate": 7}
    assert f"{sum(kinds.values())} jobs submitted" in told.stdout

    # Slurm itself holds the order: each job waits for the jobs of its parents, and the last one for all.
    waiting = {j["id"]: set(re.findall(r"after(?:ok|any):(\d+)", j["dependency"])) for j in queue().values()}
    adaptation = site.jobs("grid", "adaptation")
    for id in site.jobs("grid", "safety_tune"):
        assert waiting[id] == set(adaptation)
    for id in site.jobs("grid", "merge"):
        assert set(adaptation) < waiting[id] and waiting[id] & set(site.jobs("grid", "safety_tune"))
    finish = site.jobs("grid")[-1]
    assert waiting[finish] & set(site.jobs("grid", "merge"))
    assert "afterany" in queue()[finish]["dependency"]

    # Asked again, also from a sweep that shares its stages: nothing is in the queue twice.
    again = site.submit("grid", *GRID)
    assert "0 jobs submitted" in again.stdout
    assert site.jobs("grid")[-1] == finish
    shares = site.submit("shares", "safety_tune=tiny_sft", "merge=none,linear")
    assert "2 jobs submitted" in shares.stdout  # a merge and its evaluation
    names = Counter(j["name"] for j in queue().values())
    assert set(names.values()) == {1}, names

    site.wait("grid")
    site.wait("shares")
    done = Counter(e["stage"] for sweep in ("grid", "shares") for e in site.events(sweep) if e["state"] == "done")
    assert set(done.values()) == {1}  # made once
    stages = {
        f"{s['stage']}/{s['key']}"
        for sweep in ("grid", "shares")
        for s in read_json(site.folder(sweep) / "plan.json")["stages"]
    }
    assert stages == set(done)
    assert not [e for sweep in ("grid", "shares") for e in site.events(sweep) if e["state"] in ("waiting", "failed")]
    assert set(site.states("grid").values()) <= {"done", "found"}

    local = here.train(*GRID, "sweep=local")
    assert local.returncode == 0, local.stderr
    expected = rows(here.outputs / "sweeps" / "local" / "results.csv")
    assert len(expected) > 40
    assert rows(site.folder("grid") / "results.csv") == expected
    assert {row["merge"] for row in rows(site.folder("shares") / "results.csv")} == {"none", "linear"}
    assert site.status("grid").returncode == 0


def test_a_finished_sweep_is_reported_without_a_job(site: Site) -> None:
    again = site.submit("grid", *GRID)
    assert "submitted" not in again.stdout
    assert "report:" in again.stdout
    assert not queue()


def test_a_partition_that_is_not_there(site: Site) -> None:
    done = site.run(
        "train.py",
        "-m",
        *site.overrides("nowhere", "safety_tune=tiny_sft", "seed=5"),
        "hydra.launcher.resources.merge.partition=gpu",
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "hydra.launcher.resources.merge.partition=gpu: no such partition; there are: high, main" in done.stderr
    assert not queue()


KILLS_AT_THE_THIRD = """#!/bin/bash
real=$(PATH=${PATH#*:} command -v sbatch)
"$real" "$@" || exit
echo >> "${0%/*}/calls"
[ "$(wc -l < "${0%/*}/calls")" -lt 3 ] || kill -KILL "$PPID"
"""


def test_the_submitting_process_is_killed_halfway(
    site: Site, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the worst moment: Slurm has taken a job in, and the process ends before it knows the job's id."""
    arguments = ("safety_tune=tiny_sft", "safety_tune.seed=11,12,13", "merge=none")
    said("scontrol", "update", "PartitionName=main", "State=DOWN")  # takes jobs in, starts none: all is still to be seen
    try:
        (tmp_path / "sbatch").write_text(KILLS_AT_THE_THIRD)
        (tmp_path / "sbatch").chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
            killed = site.run("train.py", "-m", *site.overrides("killed", *arguments))
        assert killed.returncode == -signal.SIGKILL
        before = set(queue())
        assert len(before) == 3
        again = site.submit("killed", *arguments)
        assert "3 jobs submitted, 3 queued before" in again.stdout
        assert before < set(queue())
        assert len({j["name"] for j in queue().values()}) == len(queue()) == 7  # three trainings and evaluations, and the end
    finally:
        said("scontrol", "update", "PartitionName=main", "State=UP")
    site.wait("killed")
    done = Counter(e["stage"] for e in site.events("killed") if e["state"] == "done")
    assert set(done.values()) == {1}
    assert {row["status"] for row in site.results("killed")} == {"done"}


def test_more_jobs_than_the_site_takes_follow_in_waves(site: Site, base: str) -> None:
    site.submit("waves", "safety_tune=tiny_sft", "safety_tune.seed=21,22", "merge=none", "hydra.launcher.max_submitted=3")
    seen = []

    def through() -> bool:
        seen.append(len(queue()))
        return not set(site.jobs("waves")) & set(queue())

    until(through, "all waves are through")
    assert max(seen) == 3
    assert len(site.jobs("waves")) == 5
    assert {row["status"] for row in site.results("waves")} == {"done"}
