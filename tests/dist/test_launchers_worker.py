"""The worker under other launchers than ours: `torchrun` and `deepspeed` start its ranks, stop them and keep their statuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Launch
from vlsafe.execute.events import EventReader
from vlsafe.execute.pool import reserve_port
from vlsafe.execute.task import StageOrder, Task, load_task
from vlsafe.files import read_json

pytestmark = pytest.mark.dist
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port={port}", "-m"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus=2", "--master_addr=127.0.0.1", "--master_port={port}", "--module"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """The evaluation of a model by one process; its task file is kept."""
    launch = Launch(tmp_path_factory.mktemp("finished") / "outputs")
    done = launch.train("safety_tune=none", "eval.limit=100", "engine.batch_size=1", "sweep=one")
    assert done.returncode == 0, done.stdout + done.stderr
    return launch


@pytest.fixture
def task(finished: Launch, tmp_path: Path) -> Path:
    """The same task for two processes, in a store where its answers are not there yet."""
    shutil.copytree(finished.outputs, tmp_path / "outputs", symlinks=True)
    store = tmp_path / "outputs" / "store"
    adapted = next(path.name for path in (store / "adaptation").iterdir())
    found = next(
        load_task(path)
        for path in (tmp_path / "outputs").glob("sweeps/one/work/*/generate-*.task.json")
        if load_task(path).stages[0].parents["model"] == f"adaptation/{adapted}"
    )
    for order in found.stages:
        shutil.rmtree(store / order.kind / order.key)
    execution = replace(found.execution, num_processes=2)
    Task(
        "task", found.stages, str(store), execution, str(tmp_path / "events.jsonl"), str(tmp_path / "log")
    ).save(tmp_path / "task.json")  # fmt: skip
    return tmp_path / "task.json"


def start(launcher: str, task: Path) -> subprocess.Popen[bytes]:
    with reserve_port() as held:
        port = held.getsockname()[1]
    command = [part.format(port=port) for part in LAUNCHERS[launcher]] + ["vlsafe.execute.worker", str(task)]
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "PATH": path, "LOCAL_SIZE": "2"}
    with task.with_name("shown.txt").open("ab") as shown:
        return subprocess.Popen(command, stdout=shown, stderr=shown, env=env, cwd=task.parent, start_new_session=True)


def states(task: Path) -> dict[str, str]:
    return {event["stage"]: event["state"] for event in EventReader(task.with_name("events.jsonl")).new()}


def answers(store: Path, task: Path) -> dict[str, bytes]:
    keys = [order.key for order in load_task(task).stages if order.kind == "generate"]
    return {key: (store / "generate" / key / "responses.jsonl").read_bytes() for key in keys}


def shown(task: Path) -> str:
    return task.with_name("shown.txt").read_text()[-3000:]


def until_ranks_answer(run: subprocess.Popen[bytes], task: Path) -> None:
    deadline = time.monotonic() + 120
    scratch = task.parent / "outputs" / "store" / ".scratch"
    while not any(p.stat().st_size for p in scratch.glob("*/work/responses.partial.1.jsonl")):
        assert run.poll() is None and time.monotonic() < deadline, shown(task)
        time.sleep(0.005)


def wait_for_end(task: Path) -> None:
    """Until no process of the task is left."""
    deadline = time.monotonic() + 60
    while left := [p for p in psutil.process_iter(["cmdline"]) if str(task) in (p.info["cmdline"] or ())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_stopped_on_a_signal_it_goes_on_to_the_bytes_of_one_process(launcher: str, task: Path, finished: Launch) -> None:
    run = start(launcher, task)
    until_ranks_answer(run, task)
    os.killpg(run.pid, signal.SIGTERM)  # as a terminal or a scheduler does: `deepspeed` itself passes nothing on
    assert run.wait(timeout=60) != 0
    wait_for_end(task)
    assert "interrupted" in states(task).values(), shown(task)
    assert "failed" not in states(task).values()
    again = start(launcher, task)
    assert again.wait(timeout=120) == 0, shown(task)
    assert set(states(task).values()) <= {"done", "found"}
    assert answers(task.parent / "outputs" / "store", task) == answers(finished.outputs / "store", task)
    found = [read_json(p)["facts"] for p in (task.parent / "outputs" / "store" / "generate").glob("*/manifest.json")]
    assert any(facts["resumed"] for facts in found)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_stage_that_fails_is_status_1_and_says_why(launcher: str, task: Path) -> None:
    whole = load_task(task)
    orders: list[StageOrder] = [o for o in whole.stages if o.kind == "generate"][:1]
    settings: dict[str, Any] = json.loads(json.dumps(orders[0].settings))
    settings["engine"]["system_prompt"] = "<image>"
    replace(whole, stages=(replace(orders[0], settings=settings),)).save(task)
    run = start(launcher, task)
    assert run.wait(timeout=120) == 1, shown(task)
    events = EventReader(task.with_name("events.jsonl")).new()
    assert [e["state"] for e in events][-1] == "failed"
    assert any("image" in e.get("error", "") for e in events)


def test_a_benchmark_that_cant_be_read_leaves_the_others_to_be_asked(task: Path) -> None:
    whole = load_task(task)
    broken, *others = [o for o in whole.stages if o.kind == "generate"][:2]
    missing = {"name": "jsonl", "axis": "over_refusal", "source": {"folder": str(task.parent / "nowhere.jsonl")}}
    replace(whole, stages=(replace(broken, settings={**broken.settings, "benchmark": missing}), *others)).save(task)
    run = start("torchrun", task)
    assert run.wait(timeout=120) == 1, shown(task)
    assert [states(task).get(o.id) for o in (broken, *others)] == ["failed", "done"], shown(task)
    assert any("nowhere.jsonl" in e.get("error", "") for e in EventReader(task.with_name("events.jsonl")).new())


def test_a_launcher_that_is_killed_leaves_no_rank_behind(task: Path) -> None:
    run = start("torchrun", task)
    until_ranks_answer(run, task)
    run.kill()
    run.wait()
    wait_for_end(task)
    assert "failed" not in states(task).values(), shown(task)
