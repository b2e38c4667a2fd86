"""The Slurm launcher's part of `launch/train.py`, once there is a plan: submit, say what was submitted, wait if asked to."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vlsafe.cells import Cell
from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobBook, Submission, load_submission, submitting
from vlsafe.cluster.look import look
from vlsafe.cluster.settings import WHERE, SlurmSettings, StageResources, slurm_settings
from vlsafe.cluster.slurm import Partition
from vlsafe.cluster.submit import Submitter, Wave, partition_of
from vlsafe.ending import announce, conclude
from vlsafe.errors import ConfigError
from vlsafe.execute.resources import deepspeed_settings
from vlsafe.execute.survey import Survey
from vlsafe.plan import Plan
from vlsafe.report.build import shown
from vlsafe.report.text import printable
from vlsafe.settings import settings_of
from vlsafe.store import Store
from vlsafe.sweep import Sweep, load_sweep

POLL_SECONDS = 1.0
STOPPED = 130


@dataclass(frozen=True)
class Cluster:
    """The launcher's settings and the site that they are for."""

    settings: SlurmSettings
    partitions: Mapping[str, Partition]

    @staticmethod
    def ask(values: Mapping[str, Any]) -> Cluster:
        """Raises `VlsafeError` for settings that can't be, and where this host has no Slurm or not these partitions."""
        settings = slurm_settings(values)
        slurm.check_there()
        check_setup(settings.setup)
        partitions = slurm.partitions()
        for group in (f.name for f in fields(StageResources)):
            partition_of(settings, group, partitions)
        return Cluster(settings, partitions)

    def launch(self, sweep: Sweep, plan: Plan, found: Survey, store: Store, cell: Cell, console: Console) -> int:
        """Exit status: 0 submitted; with `wait`, that of the sweep. Raises `VlsafeError` where nothing was submitted."""
        from vlsafe.report.outputs import write_plan

        submission = Submission(
            str(store.root), settings_of(cell.run), settings_of(self.settings), settings_of(cell.components["tracking"]),
            deepspeed_settings(cell),
        )  # fmt: skip
        announce(sweep, plan, found, console)
        with submitting(store):
            submitter = Submitter(sweep, plan, store, submission, JobBook(store), self.partitions)
            submitter.check(found.to_run)
            wave = submitter.wave(found.to_run)
            write_plan(sweep, plan, found, found.states(plan))
        tell(sweep, wave, console)
        return wait(sweep, store, cell, console) if self.settings.wait else 0


def check_setup(lines: Sequence[str]) -> None:
    """Raises `ConfigError` for lines that bash can't read: a job's script would end there, after its time in the queue."""
    done = subprocess.run(["bash", "-n"], input="\n".join([*lines, ""]), capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.splitlines()[0].removeprefix("bash: ")
        raise ConfigError(f"{WHERE}.setup: bash can't read it: {printable(said)}")


def tell(sweep: Sweep, wave: Wave, console: Console) -> None:
    many = f"{len(wave.queued)} job{'s' * (len(wave.queued) != 1)} submitted"
    if wave.shared:
        many += f", {len(wave.shared)} queued before"
    if wave.left:
        many += f"; {len(wave.left)} more follow when the submit limit leaves room"
    lines = [many + (f"; job {wave.finish.job} writes the results" if wave.finish else "")]
    lines += [f"status: {command(sweep)}", f"cancel: {command(sweep)} cancel"]
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def command(sweep: Sweep) -> str:
    """Of `launch/status.py`; the folder where the sweep isn't among the default outputs."""
    default = sweep.folder.parent == Path("outputs").absolute() / "sweeps"
    return f"python launch/status.py {shlex.quote(sweep.name if default else shown(sweep.folder))}"


def wait(sweep: Sweep, store: Store, cell: Cell, console: Console) -> int:
    """Shows the live view until no job of the sweep is left, then what its finish job wrote. The jobs don't need this."""
    from vlsafe.plan import make_plan
    from vlsafe.report.live import View

    began = time.monotonic()
    plan = make_plan(sweep.cells)
    try:
        with View(plan, console, cell.run.live, None) as view:
            while True:
                submission = load_submission(sweep.folder)
                assert submission is not None
                try:
                    seen = look(plan, store, submission)
                except slurm.SlurmError as error:  # a controller that restarts is back in a while
                    console.print(Text(f"{error}; asking again", style="yellow"), soft_wrap=True)
                    time.sleep(30 * POLL_SECONDS)
                    continue
                view(seen.outcome)
                live = [seen.finish, *seen.jobs.values()]
                # A finish job that submitted more, with another behind it, has said so before it ended.
                if not any(state and state.live for state in live) and load_submission(sweep.folder) == submission:
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        console.print(Text(f"The jobs go on. status: {command(sweep)}; cancel: {command(sweep)} cancel", style="yellow"))
        return STOPPED
    states = {id: progress.state for id, progress in seen.outcome.stages.items()}
    return conclude(load_sweep(sweep.folder), plan, store, states, seen.outcome, console, began)
