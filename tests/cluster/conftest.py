"""A queue that takes jobs and never runs one, so that what is submitted, in which order and behind what, can be read off.
The real Slurm is in tests/slurm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobBook, Submission
from vlsafe.cluster.settings import slurm_settings
from vlsafe.cluster.slurm import Job, Partition, SlurmError
from vlsafe.cluster.submit import Submitter, Wave
from vlsafe.plan import Plan, make_plan
from vlsafe.settings import settings_of
from vlsafe.store import Store
from vlsafe.sweep import Sweep, open_sweep, save_record

LIMIT = "sbatch: error: AssocMaxSubmitJobLimit"


@dataclass
class Queue:
    jobs: dict[str, Job] = field(default_factory=dict)
    scripts: dict[str, Path] = field(default_factory=dict)
    behind: dict[str, set[str]] = field(default_factory=dict)
    needs: dict[str, set[str]] = field(default_factory=dict)  # of those, what must end well
    fails_to_cancel: str = ""  # the job for which scancel fails
    limit: int | None = None  # the site's
    refuses: str = ""  # what a script must not hold
    dies_after: int | None = None  # sbatch calls until the submitter is killed, the job already queued
    last: int = 0

    def sbatch(self, script: Path, *options: str) -> str:
        text = script.read_text()
        if self.refuses and self.refuses in text:
            raise SlurmError("sbatch: Batch job submission failed: Invalid qos", "Invalid qos specification")
        if self.limit is not None and len(self.live()) >= self.limit:
            raise SlurmError("sbatch: AssocMaxSubmitJobLimit", LIMIT)
        self.last += 1
        id = str(self.last)
        said = dict(o.removeprefix("--").split("=", 1) for o in options)
        self.jobs[id] = Job(id, "PENDING", "Dependency" if "dependency" in said else "Priority", said["comment"], started=False)
        self.scripts[id] = script
        for waits in (self.behind, self.needs):
            waits[id] = set()
        for condition in filter(None, said.get("dependency", "").split(",")):
            how, *ids = condition.split(":")
            self.behind[id] |= set(ids)
            self.needs[id] |= set(ids) if how == "afterok" else set()
        if self.dies_after is not None:
            self.dies_after -= 1
            if self.dies_after == 0:
                raise KeyboardInterrupt
        return id

    def live(self) -> list[str]:
        return [id for id, job in self.jobs.items() if job.live]

    def cancel(self, ids: list[str]) -> None:
        if self.fails_to_cancel in ids:
            raise SlurmError("scancel: error: Connection refused")
        for id in ids:
            self.ends(id, "CANCELLED")

    def ends(self, id: str, state: str, **more: Any) -> None:
        self.jobs[id] = Job(id, state, **more)

    def task(self, id: str) -> str:
        return self.scripts[id].stem


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(slurm, "sbatch", queue.sbatch)
    monkeypatch.setattr(slurm, "queue", lambda users=(): {id: queue.jobs[id] for id in queue.live()})
    monkeypatch.setattr(slurm, "accounted", lambda ids: {id: queue.jobs[id] for id in ids if id in queue.jobs})
    monkeypatch.setattr(slurm, "cancel", queue.cancel)
    monkeypatch.setattr(slurm, "cluster", lambda: "test")
    monkeypatch.setattr(slurm, "check_there", lambda: None)
    monkeypatch.setattr(slurm, "me", lambda: "ann")
    return queue


PARTITIONS = {"cpu": Partition("cpu", True, 8, 0, 4), "gpu": Partition("gpu", False, 32, 4, 2)}


@dataclass
class Given:
    """A sweep and what its command does with Slurm."""

    sweep: Sweep
    plan: Plan
    store: Store
    submission: Submission

    def submit(self, tried: tuple[str, ...] = (), own: str | None = None) -> Wave:
        submitter = Submitter(self.sweep, self.plan, self.store, self.submission, JobBook(self.store), PARTITIONS, own)
        submitter.check(self.plan.stages)
        return submitter.wave(list(self.plan.stages), tried)


@pytest.fixture
def given(grid: Callable[..., Any], tmp_path: Path) -> Callable[..., Given]:
    def make(name: str, *overrides: str, **settings: Any) -> Given:
        cells = grid(*overrides)
        sweep = open_sweep(tmp_path / "sweeps" / name, name, cells, [o.partition("=")[0] for o in overrides])
        save_record(sweep)
        store = Store(tmp_path / "store")
        submission = Submission(
            str(store.root), settings_of(cells[0].run), settings_of(slurm_settings(settings)),
            settings_of(cells[0].components["tracking"]), None,
        )  # fmt: skip
        return Given(sweep, make_plan(sweep.cells), store, submission)

    return make
