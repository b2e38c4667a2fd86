"""The job that a sweep ends with: python -m vlsafe.cluster.finish FOLDER

It runs when all others have ended, however they did: submits what the site's limit left out, with a finish job behind it, or
writes what a local run writes at its end.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console

from vlsafe import registry
from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobBook, Submission, load_submission, submitting
from vlsafe.cluster.launch import tell
from vlsafe.cluster.look import THERE, in_store, look
from vlsafe.cluster.submit import Submitter
from vlsafe.ending import conclude
from vlsafe.errors import ConfigError, VlsafeError
from vlsafe.execute.progress import Outcome
from vlsafe.plan import Plan, make_plan
from vlsafe.store import Store
from vlsafe.sweep import Sweep, load_sweep
from vlsafe.tracking.follow import followed

SETTLE_SECONDS = 90.0  # how far behind a shared file system may be
WIDTH = 160  # of the table in the log


def main(folder: Path) -> int:
    """Exit status as a local run's: 0 all done, 1 a stage failed."""
    registry.load()
    sweep, submission = load_sweep(folder), load_submission(folder)
    if submission is None:
        raise ConfigError(f"{folder} was not given to Slurm")
    began = time.monotonic() - (time.time() - submission.first)
    store, plan = Store(Path(submission.store)), make_plan(sweep.cells)
    console = Console(highlight=False, width=WIDTH)
    seen = look(plan, store, submission)
    settle(plan, store, seen.outcome)
    if seen.unsubmitted and submit_more(sweep, plan, store, submission, seen.unsubmitted, console):
        return 0
    tracking = registry.make("tracking", submission.tracking)
    states = {id: progress.state for id, progress in seen.outcome.stages.items()}
    with followed(sweep, store, tracking, False, console):
        return conclude(sweep, plan, store, states, seen.outcome, console, began)


def settle(plan: Plan, store: Store, outcome: Outcome) -> None:
    """Stages that were said to be done and aren't to be seen yet get a moment; those that never are have failed."""
    deadline = time.monotonic() + SETTLE_SECONDS
    late = [id for id, p in outcome.stages.items() if p.state in THERE and not in_store(plan, store, id)]
    while late and time.monotonic() < deadline:
        time.sleep(1.0)
        late = [id for id in late if not in_store(plan, store, id)]
    for id in late:
        outcome.stages[id].state = "failed"
        outcome.stages[id].error = f"its job is done and it is not in store={store.root}: do all nodes see the same folder?"


def submit_more(sweep: Sweep, plan: Plan, store: Store, submission: Submission, left: set[str], console: Console) -> bool:
    """Whether jobs went into the queue, so that another finish job will come."""
    tried = {id for record in submission.tasks.values() for id in record.stages}
    with submitting(store):
        now = load_submission(sweep.folder)
        if now is None or now.cancelled or now.first != submission.first:
            return False  # cancelled, or the command given again, since this job began
        try:
            book = JobBook(store)
            submitter = Submitter(sweep, plan, store, submission, book, slurm.partitions(), os.environ.get("SLURM_JOB_ID"))
            wave = submitter.wave(left, tried)
        except VlsafeError as error:
            console.print(f"error: {error}; the same command goes on from here", style="red", markup=False, soft_wrap=True)
            return False
        if wave.ids:
            tell(sweep, wave, console)
    return bool(wave.ids)


if __name__ == "__main__":
    from vlsafe.app import errors_in_one_line

    with errors_in_one_line():
        sys.exit(main(Path(sys.argv[1])))
