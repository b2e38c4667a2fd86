"""A stage killed at any moment, also while a checkpoint is written, ends at the same bits when it is called again."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import train_killed as killed
import train_tiny as tiny
from safetensors import safe_open

from vlsafe.errors import StageInterrupted
from vlsafe.files import read_json
from vlsafe.train.checkpoint import newest, seal
from vlsafe.train.parts import part_of

METHODS = ("sft", "dpo", "kto", "lora")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vlsafe.execute.preload"])


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def undisturbed(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of runs that nothing disturbs and that write no checkpoint."""
    return {m: killed.train(m, parent, tmp_path_factory.mktemp(m), checkpoint_seconds=1e9) for m in METHODS}


@pytest.mark.parametrize("method", METHODS)
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


def test_a_checkpoint_holds_what_is_trained(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(StageInterrupted):
        killed.train("lora", parent, tmp_path, checkpoint_seconds=0.0, stop_after=8)
    [file] = (tmp_path / "work").glob("1-*/checkpoint-*/model.safetensors")
    with safe_open(file, framework="pt") as reader:
        names = set(reader.keys())
    adapters = {n for n in names if ".lora_A." in n or ".lora_B." in n}
    assert len(adapters) == 2 * 2 * 7, "A and B of every linear layer of both blocks"
    assert {part_of(n) for n in names - adapters} == {"projector"}


def newest_name(folder: Path) -> Path | None:
    complete = [c for c in folder.glob("checkpoint-*") if (c / "complete.json").exists()]
    return complete[0] if complete else None


@pytest.mark.parametrize("method", METHODS)
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
    torn = checkpoint.path.with_name("checkpoint-9")
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of a fi")
    (torn / "complete.json").write_text('{"model.safetensors": 4096}')
    (folder / "log.jsonl").open("a").write('{"step": 2, "loss": 1.0, "se')
    assert killed.train("dpo", parent, tmp_path, checkpoint_seconds=1e9) == undisturbed["dpo"]


@pytest.mark.parametrize(
    ("method", "stop_after", "damaged"),
    [
        ("sft", 2, "0-*/checkpoint-*/model.safetensors"),
        ("sft", 8, "1-*/checkpoint-*/optimizer.pt"),
        ("sft", 2, "0-*/checkpoint-*/log.jsonl"),
        ("sft", 2, "0-*/checkpoint-*/complete.json"),
        ("sft", 6, "0-*/final.safetensors"),  # the second phase has no checkpoint yet
        ("sft", 8, "0-*/final.safetensors"),
        ("sft", 8, "0-*/done.json"),
        ("dpo", 2, "0-*/reference.safetensors"),
        ("kto", 2, "0-*/reference.safetensors"),
        ("lora", 8, "1-*/checkpoint-*/model.safetensors"),  # adapters and projector
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
    flip_a_bit(file)
    assert "damaged" not in capfd.readouterr().err
    assert killed.train(method, parent, tmp_path) == undisturbed[method]
    assert f"{file.parent}: damaged since it was written, so dropped: {file.name}" in capfd.readouterr().err


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_an_older_checkpoint_serves_where_the_newest_is_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for step in (9, 10):  # where the process died before the older one was removed
        checkpoint = tmp_path / f"part-{step}" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(bytes(100))
        seal(checkpoint, seconds=float(step))
        checkpoint.rename(tmp_path / checkpoint.name)
    assert newest(tmp_path) == (tmp_path / "checkpoint-10", 10, 10.0)
    flip_a_bit(tmp_path / "checkpoint-10" / "model.safetensors")
    assert newest(tmp_path) == (tmp_path / "checkpoint-9", 9, 9.0)
    assert "checkpoint-10: damaged since it was written, so dropped: model.safetensors" in capfd.readouterr().err
    assert not (tmp_path / "checkpoint-10").exists()
    flip_a_bit(tmp_path / "checkpoint-9" / "complete.json")
    assert newest(tmp_path) is None


def test_a_stage_knows_how_long_earlier_tries_worked_on_it(parent: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    def attempt(stop_after: int | None = None) -> tuple[float, float]:
        """Seconds of earlier tries, as the stage says, and of this one, by the clock."""
        facts: dict[str, Any] = {}
        began = time.monotonic()
        if stop_after is None:
            assert killed.train("sft", parent, tmp_path, facts=facts) == undisturbed["sft"]
        else:
            with pytest.raises(StageInterrupted):
                killed.train("sft", parent, tmp_path, stop_after=stop_after, facts=facts)
        return facts["earlier_seconds"], time.monotonic() - began

    spent = 0.0
    for stop_after in (3, 8, 10, None):  # in the first phase, twice in the second, never
        earlier, seconds = attempt(stop_after)
        assert 0.5 * spent <= earlier <= spent, "each try ends with a checkpoint"
        spent += seconds
    [checkpoint] = (tmp_path / "work").glob("1-*/checkpoint-*")
    flip_a_bit(checkpoint / "optimizer.pt")
    assert attempt()[0] == read_json(tmp_path / "work" / "0-projector" / "done.json")["seconds"], "dropped work is not counted"
