"""`launch/status.py`: what of a sweep is queued, running, done or failed, and why; or cancel its jobs.

python launch/status.py SWEEP          a line for each stage, and for all evaluation of a model
python launch/status.py SWEEP cancel   no other sweep's jobs; the same train command goes on later
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlsafe.cluster import slurm
from vlsafe.cluster.cancel import cancel
from vlsafe.cluster.jobs import Submission, load_submission
from vlsafe.cluster.look import JobState, look
from vlsafe.errors import VlsafeError
from vlsafe.execute.events import EventReader
from vlsafe.execute.progress import Progress
from vlsafe.lock import process_start
from vlsafe.plan import Plan, make_plan
from vlsafe.report.build import shown
from vlsafe.report.command import dashed, named_sweep
from vlsafe.report.live import clock
from vlsafe.report.plan_view import distinct_labels, evaluations
from vlsafe.report.states import states_now
from vlsafe.report.text import fit, printable, shorten, widen
from vlsafe.stage import STAGE_KINDS
from vlsafe.store import Store
from vlsafe.sweep import Sweep

GAP, LEAST, LEAST_SAID = 2, 16, 12
ENDED_WELL = ("done", "found", "exists")
SHOWN = {"pending": "queued", "interrupted": "queued", "found": "done", "exists": "done", "waiting": "running"}
STYLES = {"done": "green", "running": "cyan", "failed": "red", "skipped": "red", "queued": "", "to run": "yellow"}
ORDER = ("failed", "running", "queued", "to run", "skipped", "done")  # a line for several stages says the first of these


@dataclass(frozen=True)
class Line:
    state: str
    stage: str
    what: str
    said: str  # why it waits, how far it is
    job: str
    for_: str  # how long it has been running, or took


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where a stage has failed."""
    parser = argparse.ArgumentParser(prog="launch/status.py", description=__doc__)
    parser.add_argument("sweep", nargs="?", help="the sweep's name, or its folder; without it, the names there are")
    parser.add_argument("action", nargs="?", choices=["cancel"], help="cancel the sweep's jobs that no other sweep wants")
    parser.add_argument("--outputs", default="outputs", help="the folder of sweeps/ and store/ (default: outputs)")
    parser.add_argument("--store", help="the store's folder (default: OUTPUTS/store)")
    options = parser.parse_args(dashed(arguments))
    sweep, store = named_sweep(options.sweep or "", options.outputs, options.store)
    console = Console(highlight=False)
    submission = load_submission(sweep.folder)
    if submission is not None:
        store = Store(Path(submission.store))
    if options.action == "cancel":
        return cancel(sweep, store, submission, slurm.me(), console)
    return show(sweep, store, submission, console)


def show(sweep: Sweep, store: Store, submission: Submission | None, console: Console) -> int:
    plan = make_plan(sweep.cells)
    jobs: Mapping[str, JobState] = {}
    finish: JobState | None = None
    note = ""
    if submission is None:
        stages = local_stages(sweep, plan, store)
    else:
        try:
            seen = look(plan, store, submission)
        except VlsafeError as error:  # the records say much even where Slurm doesn't answer
            seen, note = look(plan, store, submission, ask=False), f"{error}: shown is what the files say"
        stages, jobs, finish = seen.outcome.stages, seen.jobs, seen.finish
    lines = lines_of(plan, stages, jobs, submission)
    console.print(table(lines, console))
    print_failures(plan, stages, jobs, console)
    if note:
        console.print(Text(note, style="yellow"), soft_wrap=True)
    console.print(Text(headline(sweep, lines, finish, submission)), soft_wrap=True)
    return 1 if any(p.state == "failed" for p in stages.values()) else 0


def local_stages(sweep: Sweep, plan: Plan, store: Store) -> dict[str, Progress]:
    """Of a sweep that runs, or ran, on this machine: by the store, plan.json, and the events of commands that are alive."""
    states, reasons = states_now(sweep, plan, store)
    stages = {id: Progress(states[id]) for id in plan.stages}
    for id, reason in reasons.items():
        stages[id].error, stages[id].log = reason.error, reason.log
    for folder in (sweep.folder / "work").glob("[0-9]*"):
        if process_start(int(folder.name)) is None:
            continue
        for path in folder.glob("*.events.jsonl"):
            for event in EventReader(path).new():
                if stages.get(event["stage"], Progress("exists")).state not in ENDED_WELL:
                    stages[event["stage"]].apply(event)
                    stages[event["stage"]].log = str(sweep.folder / "logs" / path.name.replace(".events.jsonl", ".log"))
    return stages


# Lines


def lines_of(
    plan: Plan, stages: Mapping[str, Progress], jobs: Mapping[str, JobState], submission: Submission | None
) -> list[Line]:
    names = distinct_labels(plan)
    lines = []
    for kind in STAGE_KINDS[:4]:
        for id, stage in plan.stages.items():
            if stage.kind == kind:
                lines.append(line_of([id], kind, names[id], stages, jobs, submission))
    for model, ids in evaluations(plan).items():
        lines.append(line_of(ids, "evaluation", names[model], stages, jobs, submission))
    return lines


def line_of(
    ids: Sequence[str],
    stage: str,
    what: str,
    stages: Mapping[str, Progress],
    jobs: Mapping[str, JobState],
    submission: Submission | None,
) -> Line:
    states = {id: state_of(stages[id], id in jobs and jobs[id].live) for id in ids}
    state = next(s for s in ORDER if s in states.values())
    among = [stages[id] for id in ids if states[id] == state]
    of_state = [id for id in ids if states[id] == state]
    job = jobs.get(of_state[0])
    started = [p.started for p in (stages[id] for id in ids) if p.started is not None]
    took = ""
    if state == "running" and started:
        took = clock(time.time() - min(started))
    elif state == "done" and any(p.seconds for p in among):
        took = clock(sum(p.seconds or 0.0 for p in among))
    done = sum(s == "done" for s in states.values())
    progress = next((p for p in among if p.state == "running"), among[0])
    said = printable(progress.note)
    if state == "running" and progress.state == "waiting":
        said = f"waiting: {said}"
    elif state == "running" and len(ids) > 1:
        said = f"{done} of {len(ids)} stages"
    elif state == "running" and progress.total:
        said = f"{progress.done}/{progress.total} {said}"
    elif state == "failed":
        said = printable(progress.error).partition(": ")[0]  # the whole stands below the table
    elif state == "skipped":
        said = "needs what failed"
    elif state == "to run":
        said = "was not submitted" if submission is not None and not submission.cancelled else ""
    elif state == "done":
        said = ""
    return Line(state, stage, what, said, (job.record.job or "") if job else "", took)


def state_of(progress: Progress, in_queue: bool) -> str:
    shown = SHOWN.get(progress.state, progress.state)
    return "to run" if shown == "queued" and not in_queue else shown


def table(lines: Sequence[Line], console: Console) -> Table:
    """`what` and the reason share what a terminal has; in a pipe everything is whole."""
    heads = ("state", "stage", "what", "why, or how far", "job", "time")
    rows = [(line.state, line.stage, line.what, line.said, line.job, line.for_) for line in lines]
    sizes = [max(cell_len(text) for text in column) for column in zip(heads, *rows, strict=True)]
    used = [i for i in range(len(heads)) if i < 3 or any(row[i] for row in rows)]
    fixed = sum(sizes[i] for i in used if i not in (2, 3)) + GAP * (len(used) - 1)
    widen(console, needed=fixed + sizes[2] + (sizes[3] if 3 in used else 0), whole=fixed + LEAST + LEAST_SAID)
    room = console.width - fixed
    if 3 in used:
        sizes[3] = min(sizes[3], max(room - sizes[2], room // 2))
        room -= sizes[3]
    sizes[2] = min(sizes[2], room)
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, GAP, 0, 0))
    for i in used:
        made.add_column(fit(heads[i], min(sizes[i], cell_len(heads[i])), left=True), width=sizes[i], no_wrap=True,
                        justify="right" if i > 3 else "left")  # fmt: skip
    for row, what in zip(rows, shorten([row[2] for row in rows], sizes[2]), strict=True):
        cells = {0: Text(row[0], style=STYLES.get(row[0], "")), 2: Text(what), 3: Text(fit(row[3], sizes[3], left=True))}
        made.add_row(*(cells.get(i, Text(row[i])) for i in used))
    return made


def print_failures(plan: Plan, stages: Mapping[str, Progress], jobs: Mapping[str, JobState], console: Console) -> None:
    """Each reason once, whole, with its log."""
    same: dict[tuple[str, str], list[str]] = {}
    for id, progress in stages.items():
        if progress.state == "failed":
            same.setdefault((progress.error, progress.log), []).append(id)
    for (error, log), ids in same.items():
        stage = plan.stages[ids[0]]
        more = f" (and {len(ids) - 1} more stages of the same task)" if len(ids) > 1 else ""
        console.print(
            Text(f"FAILED {stage.kind} {printable(stage.label)}{more}: {printable(error)}", style="red"), soft_wrap=True
        )
        job = f"job {jobs[ids[0]].record.job}, " if ids[0] in jobs else ""
        console.print(Text(f"  {job}log: {shown(Path(log)) if log else 'none'}"), soft_wrap=True)


def headline(sweep: Sweep, lines: Sequence[Line], finish: JobState | None, submission: Submission | None) -> str:
    counts = Counter(line.state for line in lines)
    said = ", ".join(f"{counts[s]} {s}" for s in ("done", "running", "queued", "to run", "failed", "skipped") if counts[s])
    if submission is not None and submission.cancelled:
        said += f"; cancelled by {submission.cancelled}: the same command goes on"
    elif finish is not None and finish.live:
        assert isinstance(finish.now, slurm.Job)
        said += f"; job {finish.record.job} writes the results" + (" now" if finish.now.state == "RUNNING" else " at the end")
    elif counts["to run"]:
        said += "; the same command goes on"
    return f"sweep {sweep.name}: {said}"
