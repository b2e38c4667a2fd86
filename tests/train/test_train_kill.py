"""A stage killed at any moment, also while a checkpoint is written, ends at the same bits when it is called again."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import train_killed as killed
import train_tiny as tiny

from vlsafe.errors import StageInterrupted
from vlsafe.train.checkpoint import newest

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vlsafe.execute.preload"])


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def undisturbed(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of runs that nothing disturbs and that write no checkpoint."""
    return {m: killed.train(m, parent, tmp_path_factory.mktemp(m), checkpoint_seconds=1e9) for m in ("sft", "dpo")}


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_killed_at_random_moments(method: str, parent: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    draw = random.Random(method)
    kills, resumed = 0, set()
    torn = FORKS.Process(target=killed.child, args=(method, parent, tmp_path, 4))
    torn.start()
    torn.join()
    assert torn.exitcode == -signal.SIGKILL
    for attempt in range(40):
        process = FORKS.Process(target=killed.child, args=(method, parent, tmp_path))
        process.start()
        if attempt < 6:
            # Wait for the work to begin, so that the kill falls into training and checkpoints rather than imports.
            while process.is_alive() and not list(tmp_path.glob("work/*/checkpoint-*")):
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.35))
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
                kills += 1
        process.join()
        resumed |= {c.name for folder in tmp_path.glob("work/*") if (c := newest_name(folder))}
        if (tmp_path / "hash").exists():
            break
    assert kills >= 2
    assert resumed, "no try left a checkpoint"
    assert (tmp_path / "hash").read_text() == undisturbed[method]
    log = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    steps = [(line["phase"], line["step"]) for line in log]
    assert steps == [(p.name, i + 1) for p in killed.phases(method) for i in range(p.optimization.steps)]


def newest_name(folder: Path) -> Path | None:
    complete = [c for c in folder.glob("checkpoint-*") if (c / "complete.json").exists()]
    return complete[0] if complete else None


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_stopped_on_request(method: str, parent: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(StageInterrupted, match="with a checkpoint"):
        killed.train(method, parent, tmp_path, checkpoint_seconds=0.0, stop_after=8)
    assert killed.train(method, parent, tmp_path, checkpoint_seconds=1e9) == undisturbed[method]


def test_stopped_before_the_first_step(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(StageInterrupted, match="stopped while reading rows"):
        killed.train("sft", parent, tmp_path, stop_after=0)


def test_a_torn_checkpoint_does_not_count(parent: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(StageInterrupted):
        killed.train("dpo", parent, tmp_path, checkpoint_seconds=0.0, stop_after=2)
    folder = tmp_path / "work" / "0-pairs"
    checkpoint = newest(folder)
    assert checkpoint is not None
    torn = checkpoint.with_name("checkpoint-9")
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of a fi")
    (torn / "complete.json").write_text('{"model.safetensors": 4096}')
    (folder / "log.jsonl").open("a").write('{"step": 2, "loss": 1.0, "se')
    assert killed.train("dpo", parent, tmp_path, checkpoint_seconds=1e9) == undisturbed["dpo"]


@pytest.mark.parametrize(
    ("method", "stop_after", "damaged"),
    [
        ("sft", 2, "0-*/checkpoint-*/model.safetensors"),
        ("sft", 2, "0-*/checkpoint-*/optimizer.pt"),
        ("sft", 8, "0-*/final.safetensors"),
        ("dpo", 2, "0-*/reference.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_not_resumed_from(
    method: str,
    stop_after: int,
    damaged: str,
    parent: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(StageInterrupted):
        killed.train(method, parent, tmp_path, checkpoint_seconds=0.0, stop_after=stop_after)
    [file] = (tmp_path / "work").glob(damaged)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert killed.train(method, parent, tmp_path) == undisturbed[method]
    assert "is damaged" in capfd.readouterr().err
