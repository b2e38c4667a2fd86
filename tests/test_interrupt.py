"""Stopped, killed or run twice at once: the same command ends with the same keys and the same bytes as an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import TINY, Launch
from vlsafe.execute.events import EventReader
from vlsafe.files import read_json

# Enough steps for a kill to land inside each training stage, and a checkpoint after almost each of them.
GRID = (
    "safety_tune=tiny_sft,tiny_dpo",
    "merge=ties",
    "checkpoint_seconds=0.05",
    "model.pretraining.steps=60",
    "adaptation.instruct.steps=60",
    "safety_tune.optimization.steps=30",
)


def contents(launch: Launch) -> dict[str, dict[str, str]]:
    """The hash of every published file but what tells of the run itself (times), by artifact."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": {
            name: entry["sha256"] for name, entry in read_json(path)["files"].items() if not name.endswith("train_log.jsonl")
        }
        for path in (launch.outputs / "store").glob("[a-z]*/*/manifest.json")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    launch = Launch(tmp_path_factory.mktemp("undisturbed") / "outputs")
    done = launch.train(*GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    found = contents(launch)
    assert sum("model.safetensors" in files for files in found.values()) == 7
    return found


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where the tests were started with SIGINT ignored, as a shell does for what it runs in the background: children
    would ignore it too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(launch: Launch, *overrides: str) -> subprocess.Popen[bytes]:
    command = launch.command("train.py", *TINY, f"outputs={launch.outputs}", *GRID, *overrides)
    launch.outputs.parent.mkdir(parents=True, exist_ok=True)
    with (launch.outputs.parent / "shown.txt").open("ab") as shown:
        return subprocess.Popen(command, stdout=shown, stderr=shown, cwd=launch.outputs.parent, start_new_session=True)


def resumed(launch: Launch) -> set[str]:
    """The kinds of stages that went on from a checkpoint inside a phase."""
    manifests = [read_json(path) for path in (launch.outputs / "store").glob("[a-z]*/*/manifest.json")]
    return {m["stage"] for m in manifests for phase in m["facts"].get("phases", {}).values() if phase["resumed_from_step"]}


def wait_for(launch: Launch, process: subprocess.Popen[bytes], kind: str, mark: str | None = None) -> None:
    """Until a stage of this kind is some steps into its training, or has left `mark` in its work folder."""
    readers: dict[Path, EventReader] = {}
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if mark and any(launch.outputs.glob(f"store/.scratch/{kind}-*/work/{mark}")):
            return
        if mark:
            time.sleep(0.005)
            continue
        for path in launch.outputs.glob(f"sweeps/*/work/*/{kind}-*.events.jsonl"):
            if any(event.get("done", 0) > 3 for event in readers.setdefault(path, EventReader(path)).new()):
                return
        time.sleep(0.02)
    pytest.fail(f"no {kind} stage was seen training: {(launch.outputs.parent / 'shown.txt').read_text()[-2000:]}")


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the launcher and everything below it, as a power cut would."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def finish(launch: Launch) -> None:
    process = start(launch)
    assert process.wait(timeout=300) == 0, (launch.outputs.parent / "shown.txt").read_text()[-3000:]


def test_killed_inside_every_kind_of_training_it_ends_with_the_same_bytes(
    launch: Launch, undisturbed: dict[str, dict[str, str]]
) -> None:
    for kind, phase in (("model", "0-*"), ("adaptation", "1-instruct"), ("safety_tune", "0-*")):
        process = start(launch)
        wait_for(launch, process, kind, f"{phase}/*/complete.json")
        kill_all(process)
    finish(launch)
    assert contents(launch) == undisturbed
    assert resumed(launch) >= {"model", "adaptation", "safety_tune"}


def test_killed_at_random_moments_it_ends_with_the_same_bytes(launch: Launch, undisturbed: dict[str, dict[str, str]]) -> None:
    seed = random.randrange(10**6)
    print(f"kill times drawn with seed {seed}")
    moments = random.Random(seed)
    for _ in range(2):
        process = start(launch)
        try:
            process.wait(timeout=moments.uniform(3, 14))
            break
        except subprocess.TimeoutExpired:
            kill_all(process)
    finish(launch)
    assert contents(launch) == undisturbed


def test_ctrl_c_stops_at_a_checkpoint_and_the_same_command_goes_on(
    launch: Launch, undisturbed: dict[str, dict[str, str]]
) -> None:
    process = start(launch, "checkpoint_seconds=3600")
    wait_for(launch, process, "adaptation")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "the same command goes on from here" in (launch.outputs.parent / "shown.txt").read_text()
    # A checkpoint, or the whole of a phase where the stop fell between two.
    marks = {path.name for path in launch.outputs.glob("store/.scratch/adaptation-*/work/**/*.json")}
    assert marks & {"complete.json", "done.json"}
    finish(launch)
    assert contents(launch) == undisturbed


@pytest.mark.parametrize("seconds", [0.8, 2.5])
def test_ctrl_c_before_anything_runs_is_a_clean_stop(launch: Launch, seconds: float) -> None:
    process = start(launch)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    shown = (launch.outputs.parent / "shown.txt").read_text()
    assert "Traceback" not in shown
    assert "error" not in shown


INTERRUPTED = """
import multiprocessing.forkserver, os, signal
from vlsafe.execute.pool import Pool

def starts():
    os.kill(os.getpid(), signal.SIGINT)
    reached.append("started")

reached = []
multiprocessing.forkserver.ensure_running = starts
try:
    Pool().warm_up()
except KeyboardInterrupt:
    print("interrupted after", *reached)
"""


def test_ctrl_c_while_the_server_starts_is_not_lost() -> None:
    """In a process of its own: any thread that other tests have left behind would take the signal at once."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.stdout == "interrupted after started\n", done.stderr


def test_the_same_command_twice_at_once_succeeds_twice(launch: Launch, undisturbed: dict[str, dict[str, str]]) -> None:
    first = start(launch)
    wait_for(launch, first, "model")
    second = start(launch)
    assert [first.wait(timeout=300), second.wait(timeout=300)] == [0, 0]
    assert contents(launch) == undisturbed


def test_two_commands_that_grow_one_sweep_lose_no_cell(launch: Launch) -> None:
    grown = [
        subprocess.Popen(
            launch.command("train.py", *TINY, f"outputs={launch.outputs}", "sweep=one", *slice_), stdout=subprocess.DEVNULL
        )
        for slice_ in (("merge=none,linear", "safety_tune=none,tiny_sft"), ("merge=ties", "safety_tune=none,tiny_sft"))
    ]
    assert [process.wait(timeout=300) for process in grown] == [0, 0]
    cells = (launch.outputs / "sweeps" / "one" / "cells.jsonl").read_text().splitlines()
    assert len(cells) == 6
    assert all('"status": "done"' in cell for cell in cells)


def test_a_worker_that_is_killed_fails_its_stage_and_the_same_command_mends_it(
    launch: Launch, undisturbed: dict[str, dict[str, str]]
) -> None:
    process = start(launch)
    wait_for(launch, process, "safety_tune")
    hit = [p for p in psutil.Process(process.pid).children(recursive=True) if p.ppid() != process.pid]
    hit[-1].kill()
    assert process.wait(timeout=120) == 1
    assert "the worker was ended by SIGKILL" in (launch.outputs.parent / "shown.txt").read_text()
    finish(launch)
    assert contents(launch) == undisturbed


def test_two_processes_on_one_store_share_the_work(launch: Launch, undisturbed: dict[str, dict[str, str]]) -> None:
    both = [start(launch, f"sweep={name}") for name in ("one", "two")]
    assert [process.wait(timeout=300) for process in both] == [0, 0], (launch.outputs.parent / "shown.txt").read_text()[-3000:]
    assert contents(launch) == undisturbed
    made: list[str] = []
    for path in launch.outputs.glob("sweeps/*/work/*/*.events.jsonl"):
        made += [event["stage"] for event in EventReader(path).new() if event["state"] == "done"]
    assert sorted(made) == sorted(undisturbed)  # each stage was made once, by one of the two
