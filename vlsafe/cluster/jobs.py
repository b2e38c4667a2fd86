"""Records of jobs in the store, `<store>/.jobs/<task>.json`: what is queued already is not submitted again, by any sweep.

A record is written before its job is submitted, with a token that goes along as the job's comment, and completed with the job's
id. So a submitter that is killed between the two leaves a job that is found by its token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsafe.cluster import slurm
from vlsafe.errors import VlsafeError
from vlsafe.files import read_json, write_json
from vlsafe.keys import digest
from vlsafe.lock import age, held
from vlsafe.settings import build
from vlsafe.store import Store

FOLDER = ".jobs"
UNDERWAY_SECONDS = 10.0  # how long the sbatch of a submitter that was killed may still be on its way
FINISH = "finish"


@dataclass(frozen=True)
class JobRecord:
    name: str  # of the task, unique in the store while it is live
    stages: tuple[str, ...]  # ids; none for the job that a sweep ends with
    trainings: tuple[str, ...]  # `kind/training key` of each
    events: str
    log: str
    journal: str
    token: str = field(default_factory=lambda: f"vlsafe:{secrets.token_hex(8)}")
    job: str | None = None
    cluster: str = ""
    user: str = ""
    sweeps: tuple[str, ...] = ()  # folders of the sweeps that want it


def finish_name(sweep: Path) -> str:
    return f"{FINISH}-{digest(str(sweep))}"


class JobBook:
    """The records, beside what the queue says. Use it under `submitting`, except to look."""

    def __init__(self, store: Store) -> None:
        self.folder = store.root / FOLDER
        self.records = {r.name: r for r in self._read()}
        self.users = {r.user for r in self.records.values() if r.user}
        self.queue = slurm.queue(self.users)
        self._adopt()
        self.mine = [job for job in self.queue.values() if job.live and job.mine]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def live(self, record: JobRecord) -> bool:
        """Whether its job may still run, or runs."""
        here = record.cluster in ("", slurm.cluster())  # another cluster that sees the store counts its jobs by itself
        return here and record.job is not None and record.job in self.queue and self.queue[record.job].live

    def live_records(self) -> list[JobRecord]:
        return [r for r in self.records.values() if self.live(r)]

    def of_stages(self) -> dict[str, JobRecord]:
        """The live record that each stage belongs to."""
        return {id: r for r in self.live_records() for id in r.stages}

    def write(self, record: JobRecord) -> JobRecord:
        self.records[record.name] = record
        write_json(self.path(record.name), dataclasses.asdict(record))
        return record

    def submitted(self, record: JobRecord, job: str) -> JobRecord:
        self.queue[job] = slurm.Job(job, "PENDING", comment=record.token)
        return self.write(dataclasses.replace(record, job=job))

    def draft(self, record: JobRecord) -> JobRecord:
        """What is written just before its job is submitted."""
        return self.write(dataclasses.replace(record, cluster=slurm.cluster(), user=slurm.me(), job=None))

    def want(self, record: JobRecord, sweep: Path) -> JobRecord:
        if str(sweep) in record.sweeps:
            return record
        return self.write(dataclasses.replace(record, sweeps=(*record.sweeps, str(sweep))))

    def drop(self, record: JobRecord) -> None:
        self.records.pop(record.name, None)
        self.path(record.name).unlink(missing_ok=True)

    def _read(self) -> Iterator[JobRecord]:
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []:
            # One that can't be read is no record: the lease on its stage still keeps two from doing the same work.
            with contextlib.suppress(OSError, ValueError, TypeError, VlsafeError):
                yield build(JobRecord, read_json(path), path.name)

    def _adopt(self) -> None:
        """Gives records without an id the job that carries their token, where there is one."""
        for record in [r for r in self.records.values() if r.job is None]:
            while True:
                ids = [job.id for job in self.queue.values() if job.comment == record.token]
                if ids or abs(age(self.path(record.name))) > UNDERWAY_SECONDS:
                    break
                time.sleep(1.0)
                self.queue = slurm.queue(self.users)
            if ids:
                self.write(dataclasses.replace(record, job=ids[0]))
            else:
                self.drop(record)


def submitting(store: Store) -> AbstractContextManager[None]:
    """Held while jobs are submitted or cancelled: of two commands at once the second sees what the first has queued."""
    return held(store.root / FOLDER / ".submit.lock", poll_seconds=0.2)


@dataclass
class Submission:
    """What a sweep has with Slurm, `work/slurm/sweep.json` in its folder: what its finish job and `launch/status.py` go by."""

    store: str
    run: dict[str, Any]
    settings: dict[str, Any]  # of the launcher
    tracking: dict[str, Any]
    deepspeed: dict[str, Any] | None
    tasks: dict[str, JobRecord] = field(default_factory=dict)  # every job of this sweep since its command was last given
    finish: JobRecord | None = None
    cancelled: str = ""  # by whom
    first: float = field(default_factory=time.time)

    def save(self, sweep: Path) -> None:
        write_json(work(sweep) / "sweep.json", dataclasses.asdict(self))


def work(sweep: Path) -> Path:
    return sweep / "work" / "slurm"


def load_submission(sweep: Path) -> Submission | None:
    """None where the sweep was never given to Slurm."""
    try:
        values: Mapping[str, Any] = read_json(work(sweep) / "sweep.json")
        return build(Submission, values, "work/slurm/sweep.json")
    except (OSError, ValueError):
        return None
