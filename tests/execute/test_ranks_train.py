"""A training in two processes through the launch script: one is killed, the stage fails clearly, and the same command ends with
the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import TINY, Launch
from vlsafe.files import read_json

# Every training is in two processes, with a checkpoint after almost each step; next to nothing is asked.
CELL = ("safety_tune=tiny_sft", "eval.limit=2", "num_processes=2", "checkpoint_seconds=0.01", "sweep=ranks")


def weights(launch: Launch, kind: str) -> dict[str, str]:
    found = launch.outputs.glob(f"store/{kind}/*/manifest.json")
    return {path.parent.name: read_json(path)["files"]["model.safetensors"]["sha256"] for path in found}


def ranks_of(launch: Launch, kind: str, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The main rank and the other one, once they have a checkpoint of the last phase."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        leases = [p for p in launch.outputs.glob(f"store/.locks/*{kind}*") if not p.name.startswith(".")]
        if leases and any(launch.outputs.glob(f"store/.scratch/{kind}-*/work/*/*/complete.json")):
            main = psutil.Process(int(json.loads(leases[0].read_text())["pid"]))
            server = main.parent()
            assert server is not None
            return [main, *(p for p in server.children() if p != main)]
        time.sleep(0.002)
    pytest.fail((launch.outputs.parent / "shown.txt").read_text()[-2000:])


@pytest.mark.parametrize("hit", [1, pytest.param(0, marks=pytest.mark.dist)])
def test_a_rank_that_is_killed_fails_the_stage_and_the_same_command_mends_it(
    tmp_path: Path, launch: Launch, hit: int, undisturbed: dict[str, str]
) -> None:
    with (tmp_path / "shown.txt").open("wb") as shown:
        command = launch.command("train.py", *TINY, f"outputs={launch.outputs}", *CELL)
        process = subprocess.Popen(command, stdout=shown, stderr=shown, cwd=tmp_path)
    ranks = ranks_of(launch, "adaptation", process)
    os.kill(ranks[hit].pid, signal.SIGKILL)
    assert process.wait(timeout=120) == 1
    assert f"rank {hit} was ended by SIGKILL: out of memory?" in (tmp_path / "shown.txt").read_text()
    assert not [p for p in ranks if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    done = launch.train(*CELL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights(launch, "safety_tune") == undisturbed
    found = [read_json(path)["facts"]["phases"] for path in launch.outputs.glob("store/adaptation/*/manifest.json")]
    assert any(phase["resumed_from_step"] for phases in found for phase in phases.values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    launch = Launch(tmp_path_factory.mktemp("undisturbed") / "outputs")
    done = launch.train(*CELL)
    assert done.returncode == 0, done.stdout + done.stderr
    found = weights(launch, "safety_tune")
    assert len(found) == 1
    return found
