"""How a sweep's stages stand with Slurm: from the store, the workers' events, the job scripts' notes, squeue and sacct."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobRecord, Submission
from vlsafe.cluster.script import LOG_START
from vlsafe.cluster.settings import WHERE, SlurmSettings, group_of, slurm_settings
from vlsafe.errors import StoreError
from vlsafe.execute.events import EventReader
from vlsafe.execute.progress import Outcome, Progress
from vlsafe.plan import Plan
from vlsafe.store import Store

THERE = ("done", "found", "exists")
UNASKED = "UNASKED"  # the state of a job that may be anywhere
# What squeue's reasons mean to whoever waits; any other is shown as it is.
REASONS = {
    "Dependency": "waits for other stages",
    "Resources": "waits for a free node",
    "Priority": "others come first",
    "BeginTime": "goes back into the queue",
    "None": "just submitted",
    "DependencyNeverSatisfied": "what it needs has failed",
    "ReqNodeNotAvail": "its nodes are down or reserved",
    "PartitionDown": "the partition is down",
    "JobHeldUser": "held",
    "JobHeldAdmin": "held by an administrator",
}
TAIL = 50  # lines of a log
NO_OUTPUT = "0:53"  # of a job whose log could not be opened


@dataclass
class JobState:
    """One job of a sweep. `now` is None where Slurm knows nothing of it any more."""

    record: JobRecord
    now: slurm.Job | None
    notes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return self.now is not None and self.now.live

    def last(self, *events: str) -> dict[str, Any] | None:
        return next((n for n in reversed(self.notes) if n.get("event") in events), None)

    @property
    def ran(self) -> bool:
        return bool(self.notes) or (self.now is not None and self.now.started)


@dataclass
class Look:
    outcome: Outcome
    jobs: dict[str, JobState]  # by stage
    finish: JobState | None
    unsubmitted: set[str]


def look(plan: Plan, store: Store, submission: Submission, ask: bool = True) -> Look:
    """`ask=False` goes by the store and what lies in files alone."""
    records = list(submission.tasks.values()) + ([submission.finish] if submission.finish else [])
    ids = {r.job for r in records if r.job}
    queue = slurm.queue({r.user for r in records if r.user}) if ask and ids else {}
    gone = slurm.accounted(ids - set(queue)) if ask else {}
    known = {id: queue.get(id) or gone.get(id) if ask else slurm.Job(id, UNASKED) for id in ids}
    settings = slurm_settings(submission.settings)
    states = {r.name: JobState(r, known.get(r.job or ""), notes(r)) for r in records}
    jobs = {id: states[r.name] for r in submission.tasks.values() for id in r.stages}
    outcome = Outcome({id: Progress("pending") for id in plan.stages})
    for record in submission.tasks.values():
        for event in EventReader(Path(record.events)).new():
            if event["stage"] in outcome.stages:
                outcome.stages[event["stage"]].apply(event)
    unsubmitted = set()
    for id in plan.stages:  # parents first
        progress, state = outcome.stages[id], jobs.get(id)
        if state is not None:
            progress.log = state.record.log
        if in_store(plan, store, id):
            if progress.state not in THERE:
                progress.state = "exists" if state is None else "found"
        elif progress.state in THERE:
            pass  # said to be done: a shared file system may show it a moment later
        elif state is None:
            bad = any(outcome.stages[p].state in ("failed", "skipped") for p in plan.stages[id].parents.values())
            progress.state = "skipped" if bad else "pending"
            unsubmitted |= set() if bad else {id}
        else:
            settle(plan, id, outcome.stages, state, settings)
            if submission.cancelled and not state.live and state.now is not None and state.now.state == "CANCELLED":
                progress.state, progress.error = "interrupted", ""
    finish = states.get(submission.finish.name) if submission.finish else None
    return Look(outcome, jobs, finish, unsubmitted)


def settle(plan: Plan, id: str, stages: Mapping[str, Progress], state: JobState, settings: SlurmSettings) -> None:
    """A stage that is not there, by its job."""
    progress, now = stages[id], state.now
    if state.live:
        assert now is not None
        if now.state == "PENDING" or progress.state in ("pending", "interrupted"):
            progress.state = "pending"
            progress.note = waiting_for(now, state)
        elif progress.state not in ("running", "waiting", "failed", "skipped"):
            progress.state = "pending"
        return
    if progress.state in ("failed", "skipped"):
        return
    if any(stages[p].state in ("failed", "skipped") for p in plan.stages[id].parents.values()) and not state.ran:
        progress.state = "skipped"
        return
    progress.state, progress.error = "failed", why_ended(state, plan.stages[id].kind, settings)


def waiting_for(now: slurm.Job, state: JobState) -> str:
    if now.state == UNASKED:
        return "Slurm does not say"
    if now.state != "PENDING":
        return "starting"
    again = state.last("requeue")
    said = REASONS.get(now.reason.partition(",")[0], now.reason)
    return f"{said}, after {again['why']}" if again else said


def why_ended(state: JobState, kind: str, settings: SlurmSettings) -> str:
    """In words, and what to set."""
    resources = f"{WHERE}.resources.{group_of(kind)}"
    now, gave_up = state.now, state.last("gave-up")
    if gave_up is not None:
        return f"{gave_up['why']}: raise {resources}.time or {WHERE}.max_requeues; the same command goes on from the checkpoint"
    if now is None:
        return f"its job {state.record.job} is gone and Slurm says nothing of it: the same command runs it again"
    if now.state == "OUT_OF_MEMORY":
        return f"out of memory: set {resources}.mem" + (f" above {mem}" if (mem := settings.of(kind).mem) else "")
    if now.state in ("TIMEOUT", "DEADLINE"):
        return (
            f"the time limit came before a checkpoint: raise {resources}.time or {WHERE}.signal_seconds; "
            "the same command goes on from the last checkpoint"
        )
    if now.state in ("NODE_FAIL", "BOOT_FAIL"):
        return "its node failed: the same command goes on from the last checkpoint"
    if now.state == "PREEMPTED":
        return "preempted, and the site does not requeue: the same command goes on from the last checkpoint"
    if now.state == "CANCELLED":
        return f"cancelled{f' by {now.by}' if now.by else ''}: the same command goes on from the last checkpoint"
    if not state.notes and (now.exit == NO_OUTPUT or not Path(state.record.log).exists()):
        return f"its node could not write {state.record.log}: set store= and outputs= to a file system that compute nodes see"
    if seen := complaint(Path(state.record.log)):
        return seen
    end = state.last("end", "stopped")
    code, _, number = now.exit.partition(":")
    status = (
        f"status {end['status']}"
        if end
        else f"signal {number}"
        if code == "0" and number not in ("", "0")
        else f"status {code}"
    )
    hint = ": out of memory?" if status in ("status 137", "signal 9") else ""
    return f"its job {state.record.job} ended with {status}{hint}; see its log"


def complaint(log: Path) -> str:
    """What the job's own script or launcher said against the site or a setting before the worker could say anything."""
    with contextlib.suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()[-TAIL:]):
            if line.startswith(("error: store=", f"error: {WHERE}.")):
                return line.removeprefix("error: ")
            if line.startswith(LOG_START):  # above it is what an earlier job said
                break
    return ""


def in_store(plan: Plan, store: Store, id: str) -> bool:
    stage = plan.stages[id]
    try:
        return store.exists(stage.kind, stage.key, stage.version)
    except StoreError:
        return False


def notes(record: JobRecord) -> list[dict[str, Any]]:
    """What the script of this job wrote: one JSON line each."""
    lines = []
    with contextlib.suppress(OSError):
        for line in Path(record.journal).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                note = json.loads(line)
                if isinstance(note, dict) and note.get("job") == record.job:
                    lines.append(note)
    return lines
