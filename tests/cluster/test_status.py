"""What `launch/status.py` says of each way in which a job can wait or end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cluster.conftest import Given, Queue
from tests.conftest import Launch
from vlsafe.cluster import slurm
from vlsafe.cluster.jobs import JobRecord, load_submission
from vlsafe.cluster.status import show
from vlsafe.execute.events import EventWriter

Make = Callable[..., Given]


@pytest.fixture
def sweep(queue: Queue, given: Make) -> Given:
    made = given("s", "safety_tune=sft", "merge=none", resources={"safety_tune": {"mem": "4G"}})
    made.submit()
    return made


def record(sweep: Given, name: str) -> JobRecord:
    return next(r for r in sweep.submission.tasks.values() if r.name.startswith(name))


def shown(sweep: Given, capsys: pytest.CaptureFixture[str], width: int = 160) -> str:
    show(sweep.sweep, sweep.store, load_submission(sweep.sweep.folder), Console(width=width, highlight=False))
    return capsys.readouterr().out


def note(job: JobRecord, event: str, status: int = 0, why: str = "", restarts: int = 0) -> None:
    line = {
        "time": time.time(),
        "job": job.job,
        "node": "n1",
        "restarts": restarts,
        "event": event,
        "status": status,
        "why": why,
    }
    with Path(job.journal).open("a") as journal:
        journal.write(json.dumps(line) + "\n")


def line(text: str, stage: str) -> str:
    return next(row for row in text.splitlines() if f" {stage} " in row)


def test_what_waits_says_for_what(sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(sweep, capsys)
    assert "queued" in line(text, "adaptation")
    assert "waits for other stages" in line(text, "adaptation")
    assert "others come first" in text
    assert "9 queued" in text or "8 queued" in text
    model = record(sweep, "adaptation")
    queue.ends(str(model.job), "PENDING", reason="Resources")
    assert "waits for a free node" in line(shown(sweep, capsys), "adaptation")
    note(model, "start")
    note(model, "requeue", 75, "preemption")
    queue.ends(str(model.job), "PENDING", reason="BeginTime")
    assert "goes back into the queue, after preemption" in line(shown(sweep, capsys), "adaptation")


def test_what_runs_says_how_far_it_is(sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    job = record(sweep, "adaptation")
    queue.ends(str(job.job), "RUNNING")
    events = EventWriter(Path(job.events))
    events.state(job.stages[0], "running")
    events.progress(job.stages[0], 30, 120, "instruct, loss 0.5")
    text = line(shown(sweep, capsys), "adaptation")
    assert text.startswith("running")
    assert "30/120 instruct, loss 0.5" in text


@pytest.mark.parametrize(
    ("state", "more", "notes", "said"),
    [
        ("OUT_OF_MEMORY", {}, [("start", 0, "")], "out of memory: set hydra.launcher.resources.safety_tune.mem above 4G"),
        ("TIMEOUT", {}, [("start", 0, "")], "the time limit came before a checkpoint: raise hydra.launcher.resources."),
        ("FAILED", {"exit": "1:0"}, [("start", 0, ""), ("gave-up", 1, "time limit after 3 requeues")],
         "time limit after 3 requeues: raise hydra.launcher.resources.safety_tune.time or hydra.launcher.max_requeues"),
        ("NODE_FAIL", {}, [("start", 0, "")], "its node failed: the same command goes on from the last checkpoint"),
        ("CANCELLED", {"by": "bob"}, [("start", 0, "")], "cancelled by bob"),
        ("PREEMPTED", {}, [("start", 0, "")], "preempted, and the site does not requeue"),
        ("FAILED", {"exit": "0:53"}, [], "set store= and outputs= to a file system that compute nodes see"),
        ("FAILED", {"exit": "137:0"}, [("start", 0, ""), ("end", 137, "")], "ended with status 137: out of memory?"),
        ("FAILED", {"exit": "0:9"}, [("start", 0, "")], "ended with signal 9: out of memory?"),
        ("FAILED", {"exit": "3:0"}, [("start", 0, "")], "ended with status 3; see its log"),
    ],
)  # fmt: skip
def test_what_failed_says_why_and_what_to_set(
    sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str],
    state: str, more: dict[str, Any], notes: list[tuple[str, int, str]], said: str,
) -> None:  # fmt: skip
    job = record(sweep, "safety_tune")
    if notes:
        Path(job.log).touch()
    for one in notes:
        note(job, *one)
    queue.ends(str(job.job), state, **more)
    behind = next(r for r in sweep.submission.tasks.values() if str(job.job) in queue.behind[str(r.job)])
    queue.ends(str(behind.job), "CANCELLED", by="root", started=False)
    text = shown(sweep, capsys)
    assert line(text, "safety_tune").startswith("failed")
    failure = next(row for row in text.splitlines() if row.startswith("FAILED safety_tune"))
    assert said in failure
    assert f"job {job.job}, log: " in text
    assert "needs what failed" in text
    assert text.count("FAILED") == 1


def test_a_stage_that_failed_says_so_in_its_own_words(sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    job = record(sweep, "adaptation")
    EventWriter(Path(job.events)).state(job.stages[0], "failed", error="no supervised token in source \x1b[31mx")
    queue.ends(str(job.job), "FAILED", exit="1:0")
    assert "no supervised token in source \\x1b[31mx" in shown(sweep, capsys)


def test_a_node_that_sees_no_store_is_quoted(sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    job = record(sweep, "adaptation")
    Path(job.log).write_text("error: store=/s is not visible on n7: set store= and outputs= to a shared file system\n")
    queue.ends(str(job.job), "FAILED", exit="1:0")
    assert "store=/s is not visible on n7: set store= and outputs= to a shared file system" in shown(sweep, capsys)


def test_what_a_job_s_script_complained_of_is_quoted_once(
    sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    job = record(sweep, "adaptation")
    complaint = "hydra.launcher.setup: 'module load cuda/99' failed with status 1 on n7"
    note(job, "end", 1, "setup")
    Path(job.log).write_text(f"--- job {job.job} on n7\nLmod: unknown\nerror: {complaint}\nsrun: error: n7: task 0\n")
    queue.ends(str(job.job), "FAILED", exit="1:0")
    assert complaint in shown(sweep, capsys)
    with Path(job.log).open("a") as log:  # a later job of the same task, that fails otherwise
        log.write("--- job 99 on n7\nSegmentation fault\n")
    assert "ended with status 1; see its log" in shown(sweep, capsys)


def test_where_slurm_does_not_answer_it_shows_what_the_files_say_and_says_so(
    sweep: Given, queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = record(sweep, "adaptation")
    events = EventWriter(Path(job.events))
    events.state(job.stages[0], "running")
    events.progress(job.stages[0], 30, 120, "instruct")

    def broken(users: object) -> dict[str, slurm.Job]:
        raise slurm.SlurmError("squeue: Unable to contact slurm controller")

    monkeypatch.setattr(slurm, "queue", broken)
    text = shown(sweep, capsys)
    assert "squeue: Unable to contact slurm controller: shown is what the files say" in text
    assert "30/120 instruct" in line(text, "adaptation")
    assert line(text, "safety_tune").startswith("queued")
    assert "Slurm does not say" in line(text, "safety_tune")
    assert "failed" not in text.lower()


def test_it_fits_a_narrow_terminal(sweep: Given, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console as Terminal

    for width in (80, 160):
        console = Terminal(width=width, force_terminal=True, color_system=None, highlight=False)
        show(sweep.sweep, sweep.store, load_submission(sweep.sweep.folder), console)
        rows = capsys.readouterr().out.splitlines()[:-1]
        assert max(map(len, rows)) <= width


def test_of_a_sweep_on_this_machine_it_says_what_is_to_run(launch: Launch) -> None:
    done = launch.train("safety_tune=none", "merge=none", "sweep=here")
    assert done.returncode == 0, done.stderr
    status = launch.run("status.py", str(launch.outputs / "sweeps" / "here"))
    assert status.returncode == 0, status.stderr
    assert "sweep here: 6 done" in status.stdout
    cancelled = launch.run("status.py", "here", "cancel", "--outputs", str(launch.outputs))
    assert cancelled.returncode == 2
    assert "was not given to Slurm: stop the command that runs it with Ctrl-C" in cancelled.stderr
