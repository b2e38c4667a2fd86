"""Cancelling a sweep: its jobs, but those that another sweep waits for too, and its finish job."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobBook, Submission, finish_name, submitting
from vlsafe.errors import ConfigError
from vlsafe.store import Store
from vlsafe.sweep import Sweep


def cancel(sweep: Sweep, store: Store, submission: Submission | None, user: str, console: Console) -> int:
    """Raises `ConfigError` for a sweep that has nothing with Slurm."""
    if submission is None:
        raise ConfigError(f"sweep '{sweep.name}' was not given to Slurm: stop the command that runs it with Ctrl-C")
    slurm.check_there()
    mine = str(sweep.folder)
    with submitting(store):
        book = JobBook(store)
        wanting = {str(r.sweeps[0]) for r in book.live_records() if not r.stages and r.sweeps} - {mine}
        end, kept, for_whom = [], 0, set[str]()
        for record in book.live_records():
            if mine not in record.sweeps:
                continue
            others = tuple(s for s in record.sweeps if s in wanting)
            if others:
                book.write(dataclasses.replace(record, sweeps=others))
                kept += 1
                for_whom |= set(others)
            else:
                end.append(record)
        # The finish job first: behind the others' ends it would begin at once.
        end.sort(key=lambda record: record.name != finish_name(sweep.folder))
        slurm.cancel([r.job for r in end if r.job is not None])
        if end:  # else it had ended before
            submission.cancelled = user
            submission.save(sweep.folder)
    said = f"{len(end)} job{'s' * (len(end) != 1)} cancelled" if end else "no job of this sweep was left"
    if kept:
        said += f"; {kept} stay, which {', '.join(sorted(Path(s).name for s in for_whom))} waits for too"
    console.print(Text(f"{said}; the same train command goes on from here"), soft_wrap=True)
    return 0
