"""Whole sweeps whose evaluation runs in several processes, through the launch script and through an executor with four GPUs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from tests.conftest import TINY, Launch
from tests.execute.ranks import warm_pool
from vlsafe.execute.events import EventReader
from vlsafe.execute.executor import Executor
from vlsafe.execute.survey import survey
from vlsafe.files import read_json
from vlsafe.plan import make_plan
from vlsafe.store import Store

CELL = ("safety_tune=tiny_sft", "merge=linear", "eval.limit=100", "sweep=ranks")
SHARED = ("engine.num_processes=2", "engine.batch_size=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """A sweep of one process a task."""
    launch = Launch(tmp_path_factory.mktemp("finished") / "outputs")
    done = launch.train(*CELL)
    assert done.returncode == 0, done.stdout + done.stderr
    return launch


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def manifests(launch: Launch, kind: str) -> dict[str, Any]:
    return {path.parent.name: read_json(path) for path in launch.outputs.glob(f"store/{kind}/*/manifest.json")}


def responses(launch: Launch) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in launch.outputs.glob("store/generate/*/responses.jsonl")}


def forget(launch: Launch, kind: str, *keys: str) -> None:
    for key in keys or tuple(manifests(launch, kind)):
        shutil.rmtree(launch.outputs / "store" / kind / key)


class Started:
    """A running launcher whose ranks can be found."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.shown = launch, launch.outputs.parent / "shown.txt"
        self.kept = self._kept()
        command = launch.command("train.py", *TINY, f"outputs={launch.outputs}", *CELL, *SHARED)
        with self.shown.open("wb") as shown:
            self.process = subprocess.Popen(command, stdout=shown, stderr=shown, cwd=launch.outputs.parent)

    def _kept(self) -> int:
        """Bytes of the answers that another rank than the main one keeps."""
        return sum(p.stat().st_size for p in self.launch.outputs.glob("store/.scratch/*/work/responses.partial.1.jsonl"))

    def until_ranks_answer(self) -> tuple[psutil.Process, list[psutil.Process]]:
        """The main rank, and the other ones."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            leases = [p for p in self.launch.outputs.glob("store/.locks/*generate*") if not p.name.startswith(".")]
            if leases and self._kept() > self.kept:
                main = psutil.Process(int(json.loads(leases[0].read_text())["pid"]))
                server = main.parent()
                assert server is not None
                return main, [p for p in server.children() if p != main]
            time.sleep(0.002)
        pytest.fail(f"no rank was seen to answer: {self.shown.read_text()[-2000:]}")


def test_killed_stopped_and_orphaned_ranks_lose_nothing_and_leave_nothing(finished: Launch, copied: Launch) -> None:
    tuned = next(iter(manifests(copied, "safety_tune")))
    keys = [key for key, m in manifests(copied, "generate").items() if m["parents"]["model"] == f"safety_tune/{tuned}"]
    forget(copied, "generate", *keys)

    run = Started(copied)
    run.until_ranks_answer()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=60) == 130
    assert "the same command goes on from here" in run.shown.read_text()

    left = set(keys) - set(manifests(copied, "generate"))
    run = Started(copied)
    _, others = run.until_ranks_answer()
    others[0].kill()
    assert run.process.wait(timeout=120) == 1
    assert "rank 1 was ended by SIGKILL: out of memory?" in run.shown.read_text()
    # The one benchmark that it was killed in is missing; what had not begun ran in a new task.
    assert len(left - set(manifests(copied, "generate"))) == 1

    run = Started(copied)
    ranks = run.until_ranks_answer()
    family = [ranks[0], *ranks[1], *psutil.Process(run.process.pid).children(recursive=True)]
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive

    done = copied.train(*CELL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert responses(copied) == responses(finished)
    made = [manifests(copied, "generate")[key] for key in keys]
    assert any(m["facts"]["resumed"] for m in made)
    assert {m["execution"]["num_processes"] for m in made} >= {2}


def test_a_port_in_use_says_what_to_do(
    finished: Launch, copied: Launch, grid: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else on this machine listens at the port that was free when the executor looked."""
    forget(copied, "generate", next(iter(manifests(copied, "generate"))))
    cells = grid("+experiment=tiny", *CELL, "engine.num_processes=2", "live=false")
    plan, store = make_plan(cells), Store(copied.outputs / "store")
    monkeypatch.setattr("vlsafe.execute.executor.reserve_port", lambda: socket.create_server(("127.0.0.1", 0)))
    folder = copied.outputs / "sweeps" / "ranks"
    executor = Executor(plan, store, folder, cells[0].run, survey(plan, store, mend=True), pool=warm_pool(), cores=2, gpus=[])
    outcome = executor.execute()
    errors = {outcome.stages[id].error for id in outcome.failed()}
    assert len(errors) == 1
    assert "the port is in use: hydra/launcher=local takes another when the same command is given again" in errors.pop()


def test_each_running_task_has_gpus_of_its_own(finished: Launch, copied: Launch, grid: Callable[..., Any]) -> None:
    for kind in ("judge", "generate", "merge", "safety_tune"):
        forget(copied, kind)
    cells = grid("+experiment=tiny", *CELL, "engine.num_processes=2", "live=false")
    plan, store = make_plan(cells), Store(copied.outputs / "store")
    run = replace(cells[0].run, threads=1)
    executor = Executor(
        plan, store, copied.outputs / "sweeps" / "ranks", run, survey(plan, store, mend=True), pool=warm_pool(), cores=16,
        gpus=["7", "3", "GPU-5f", "0"],
    )  # fmt: skip
    outcome = executor.execute()
    assert not outcome.failed()
    assert responses(copied) == responses(finished)
    kinds = ("safety_tune", "merge", "generate")
    given = {f"{kind}/{key}": m["execution"]["gpus"] for kind in kinds for key, m in manifests(copied, kind).items()}
    assert [given[id] for id in given if id.startswith("merge")] == [""]
    assert all(len(given[id].split(",")) == 2 for id in given if id.startswith("generate"))
    assert all(len(given[id].split(",")) == 1 for id in given if id.startswith("safety_tune"))
    assert {gpu for gpus in given.values() for gpu in gpus.split(",") if gpu} == set(executor.gpus)
    # Of two tasks that had a GPU in common, one had ended before the other began.
    used: list[tuple[float, float, set[str]]] = []
    for path in executor.work.glob("*.events.jsonl"):
        events = EventReader(path).new()
        gpus = {gpu for event in events for gpu in given.get(event["stage"], "").split(",") if gpu}
        used.append((min(e["time"] for e in events), max(e["time"] for e in events), gpus))
    together = [(a, b) for i, a in enumerate(used) for b in used[:i] if a[0] < b[1] and b[0] < a[1]]
    assert together
    assert all(not a[2] & b[2] for a, b in together)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
