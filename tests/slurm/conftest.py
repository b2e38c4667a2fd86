"""A real Slurm on this machine, up while the tests run, and sweeps that go through it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY, Launch
from vlsafe.files import read_json

UP = str(ROOT / "tests" / "slurm" / "up.sh")
DEADLINE = 180.0  # generous: what is polled for comes in seconds on an idle machine
LIVE = "PENDING,RUNNING,SUSPENDED,COMPLETING,CONFIGURING"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session", autouse=True)
def slurm() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="vlsafe-slurm-") as folder:  # a short path: sockets lie in it
        before = dict(os.environ)
        os.environ["VLSAFE_SLURM"] = f"{folder}/box"
        os.environ["SLURM_CONF"] = f"{folder}/box/slurm.conf"
        try:
            subprocess.run([UP, "up"], check=True, timeout=200)
            yield
        finally:
            subprocess.run([UP, "down"], check=True, timeout=200)
            os.environ.clear()
            os.environ.update(before)


def said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def queue() -> dict[str, dict[str, str]]:
    """Jobs that are not through, by id."""
    lines = said("squeue", "--noheader", "--array", f"--states={LIVE}", "--format=%i|%T|%j|%r|%E").splitlines()
    names = ("id", "state", "name", "reason", "dependency")
    return {line.split("|")[0]: dict(zip(names, line.split("|"), strict=True)) for line in lines}


def until(true: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE
    while not (value := true()):
        assert time.monotonic() < end, f"{what}: not within {DEADLINE:.0f} s; in the queue: {queue()}"
        time.sleep(0.3)
    return value


class Site(Launch):
    """Launch scripts that hand their sweeps to Slurm; outputs have a space in their path."""

    def overrides(self, sweep: str, *overrides: str) -> list[str]:
        return [
            *TINY,
            f"outputs='{self.outputs}'",
            "hydra/launcher=slurm",
            "checkpoint_seconds=1",
            f"sweep={sweep}",
            *overrides,
        ]

    def submit(self, sweep: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        done = self.run("train.py", "-m", *self.overrides(sweep, *overrides))
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def folder(self, sweep: str) -> Path:
        return self.outputs / "sweeps" / sweep

    def record(self, sweep: str) -> dict[str, Any]:
        record: dict[str, Any] = read_json(self.folder(sweep) / "work" / "slurm" / "sweep.json")
        return record

    def jobs(self, sweep: str, kind: str = "") -> list[str]:
        """The ids of its jobs, the one that it ends with last."""
        record = self.record(sweep)
        ids = [str(r["job"]) for name, r in record["tasks"].items() if r["job"] and name.startswith(kind)]
        return ids if kind or not record["finish"] else [*ids, str(record["finish"]["job"])]

    def wait(self, sweep: str) -> None:
        until(lambda: not set(self.jobs(sweep)) & set(queue()), f"the jobs of {sweep} are through")

    def status(self, sweep: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("status.py", sweep, *arguments, "--outputs", str(self.outputs))

    def results(self, sweep: str) -> list[dict[str, str]]:
        with (self.folder(sweep) / "results.csv").open(newline="") as handle:
            return list(csv.DictReader(handle))

    def events(self, sweep: str) -> list[dict[str, Any]]:
        files = sorted((self.folder(sweep) / "work" / "slurm").glob("*.events.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    def notes(self, sweep: str, kind: str) -> list[dict[str, Any]]:
        """What the scripts of the jobs of a kind of stage wrote."""
        files = sorted((self.folder(sweep) / "work" / "slurm").glob(f"{kind}*.job.jsonl"))
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]

    def states(self, sweep: str) -> dict[str, str]:
        """By `kind label`, as the last one to write the plan saw them."""
        return {f"{s['stage']}/{s['key']}": s["state"] for s in read_json(self.folder(sweep) / "plan.json")["stages"]}

    def training(self, sweep: str) -> Path:
        """The artifact of the one safety tuning that a sweep has."""
        keys = {s["key"] for s in read_json(self.folder(sweep) / "plan.json")["stages"] if s["stage"] == "safety_tune"}
        assert len(keys) == 1
        return self.outputs / "store" / "safety_tune" / keys.pop()

    def trains(self, sweep: str, job: str, restarts: int = 0) -> bool:
        """Whether a job that was restarted that often trains, and has written a checkpoint."""
        started = any(
            n["job"] == job and n["restarts"] == restarts and n["event"] == "start" for n in self.notes(sweep, "safety")
        )
        if job not in queue() or not started:
            return False
        start = max(n["time"] for n in self.notes(sweep, "safety") if n["job"] == job)
        told = [
            e["done"]
            for e in self.events(sweep)
            if e["stage"].startswith("safety_tune/") and e.get("done") and e["time"] > start + 1
        ]
        task = next(name for name, record in self.record(sweep)["tasks"].items() if str(record["job"]) == job)
        return bool(told) and any(self.outputs.glob(f"store/.scratch/{task}-*/**/checkpoint-*"))  # of this training, no other


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("a site") / "outputs")


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """The same on the local launcher, undisturbed."""
    return Launch(tmp_path_factory.mktemp("here") / "outputs")


@pytest.fixture(scope="session")
def base(site: Site) -> str:
    """A sweep that has made the adapted model, which others start from."""
    if "submitted" in site.submit("base", "safety_tune=none", "merge=none").stdout:
        site.wait("base")
    return "base"
