"""A sweep's records, projected to a tracker: live while it runs, whole at its end, and again at any time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsafe.errors import StoreError
from vlsafe.files import read_json
from vlsafe.lock import Lease
from vlsafe.plan import CellPlan, Stage, make_plan
from vlsafe.report.outputs import THERE, cell_status
from vlsafe.store import Store
from vlsafe.sweep import load_sweep
from vlsafe.tracking import runs, state
from vlsafe.tracking.base import Destination, OpenRun, Run, Tracker, Tracking
from vlsafe.tracking.runs import Records


@dataclass
class Projection:
    """`look()` as often as you like while the sweep runs, `finish()` once at its end."""

    folder: Path  # the sweep's
    store: Store
    tracking: Tracking
    destination: Destination
    tracker: Tracker
    again: bool = False  # send what was sent before, too
    on_change: Callable[[Projection], None] = lambda projection: None
    sent: int = 0
    total: int = 0
    busy: list[str] = field(default_factory=list)  # runs that another command is sending
    live: dict[str, OpenRun] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)  # ids of runs that this process has sent whole

    def __post_init__(self) -> None:
        self.reload()

    def reload(self) -> None:
        """Another command may have added cells, or sent some of the runs."""
        self.sweep = load_sweep(self.folder)
        self.plan = make_plan(self.sweep.cells)
        self.known = state.known_runs(self.folder, self.destination)
        self.before = state.sent_runs(state.read_state(self.folder), self.destination.name)
        self.total = len(self.plan.cells) + len(runs.training_stages(self.plan))

    def records(self, said: Mapping[str, str] | None = None) -> Records:
        """`said`: states that are known of stages; what is in the store counts as there whatever is said."""
        for id, stage in self.plan.stages.items():
            if id not in self.there:
                with contextlib.suppress(StoreError):
                    if self.store.exists(stage.kind, stage.key, stage.version):
                        self.there.add(id)
        states = {id: (said or {}).get(id, "pending") for id in self.plan.stages}
        states = {id: "pending" if s in THERE else s for id, s in states.items()} | dict.fromkeys(self.there, "found")
        return Records(self.sweep, self.plan, {id: states[id] for id in self.plan.stages}, self.store)

    def look(self) -> None:
        """New steps of the training that goes on, and the runs of what has ended since; while something trains only one of
        these, since sending a whole run takes seconds and a curve should move. Raises `TrackerDown`."""
        records = self.records()
        trained = [s for s in runs.training_stages(self.plan) if runs.training_id(s) not in self.settled]
        training = False
        for stage in trained:
            log = [] if stage.id in self.there else runs.training_log(self.store, stage)
            if log:
                self.extend(self.training_run(records, stage, log))
                training = True
        for stage in trained:
            if stage.id in self.there:
                self.send(self.training_run(records, stage, runs.training_log(self.store, stage)))
                if training:
                    return
        for planned in self.plan.cells:
            done = cell_status(planned, records.states) == "done"
            if done and runs.cell_id(self.sweep, planned) not in self.settled:
                self.send(self.cell_run(records, planned))
                if training:
                    return

    def finish(self) -> bool:
        """Everything that is known by now, every run finished. False where another command still holds some of the runs."""
        self.reload()
        said = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = {f"{s['stage']}/{s['key']}": str(s["state"]) for s in read_json(self.folder / "plan.json")["stages"]}
        inputs = state.inputs(self.folder, self.tracking)
        records = self.records(said)
        self.settled.clear()
        self.busy.clear()
        self.sent = 0
        for stage in runs.training_stages(self.plan):
            self.send(self.training_run(records, stage, runs.training_log(self.store, stage)))
        for planned in self.plan.cells:
            self.send(self.cell_run(records, planned))
        if self.busy:
            return False
        with state.changed(self.folder, self.destination.name) as part:
            part["inputs"] = inputs
        return True

    def close(self) -> None:
        """Finish what is open, as far as it got."""
        records = self.records()
        for stage in runs.training_stages(self.plan):
            if runs.training_id(stage) in self.live:
                self.send(self.training_run(records, stage, runs.training_log(self.store, stage)))

    def training_run(self, records: Records, stage: Stage, log: list[dict[str, Any]]) -> Run:
        known = self.known.get(runs.training_id(stage))
        sweeps = {self.sweep.name, *(known.sweeps if known else ())}
        return runs.training_run(records, stage, log, known.group if known else self.sweep.name, sweeps)

    def cell_run(self, records: Records, planned: CellPlan) -> Run:
        return runs.cell_run(records, planned, self.tracking.upload_text)

    def open(self, run: Run) -> OpenRun | None:
        """None while another process has it."""
        if run.id not in self.live:
            lease = Lease(self.store.root / ".locks" / f"tracking-{run.id}.json")
            with contextlib.suppress(OSError):  # a store that can only be read
                if not lease.acquire():
                    return None
            self.leases[run.id] = lease
            known = self.known.get(run.id)
            try:
                self.live[run.id] = self.tracker.open(run, known.steps if known else {})
            except BaseException:
                self.release(run.id)
                raise
        return self.live[run.id]

    def release(self, id: str) -> None:
        with contextlib.suppress(OSError):
            self.leases.pop(id).release()

    def extend(self, run: Run) -> OpenRun | None:
        """The rows that the tracker does not have yet."""
        known = self.known.get(run.id)
        if run.id not in self.live and known and known.steps.get(self.destination.name, 0) >= len(run.history):
            return None  # a dead try's: whoever goes on from it adds rows
        opened = self.open(run)
        while opened is not None and opened.next_step < len(run.history):
            opened.log(run.history[opened.next_step])
        return opened

    def send(self, run: Run) -> None:
        """The whole run, unless it was sent as it is. What has not begun is no run."""
        if run.id in self.settled:
            return
        begun = run.history or run.id in self.live or run.id in self.before
        digest = run.digest()
        same = run.id in self.before and self.before[run.id].digest == digest and not self.again
        if (same and run.id not in self.live) or not (begun or run.state != "interrupted" or has_results(run)):
            self.settle(run.id)
            return
        opened = self.open(run)
        if opened is None:
            self.busy.append(run.id)
            return
        try:
            while opened.next_step < len(run.history):
                opened.log(run.history[opened.next_step])
            opened.finish(run)
        finally:
            del self.live[run.id]
            self.release(run.id)
        with state.changed(self.folder, self.destination.name) as part:
            part["runs"][run.id] = {"digest": digest, "steps": len(run.history), "group": run.group}
        self.before[run.id] = state.Sent(digest, len(run.history), run.group)
        self.settle(run.id)

    def settle(self, id: str) -> None:
        self.settled.add(id)
        self.sent = len(self.settled)
        self.on_change(self)


def has_results(run: Run) -> bool:
    return any("/" in name for name in run.summary)
