"""Batches are global: how they are split over processes is exact, refused where it can't be, and in no key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlsafe.errors import ConfigError
from vlsafe.execute.resources import check_training, deepspeed_settings, needs
from vlsafe.plan import make_plan
from vlsafe.train.deepspeed import Zero, check_compiler
from vlsafe.train.split import Split, split


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "made"),
    [(8, 1, None, (1, 8, 1)), (8, 2, None, (2, 4, 1)), (8, 2, 2, (2, 2, 2)), (8, 2, 16, (2, 4, 1)), (128, 8, 4, (8, 4, 4))],
)
def test_a_step_has_the_same_rows_however_it_is_split(batch: int, processes: int, micro: int | None, made: Any) -> None:
    found = split(batch, processes, micro, "x")
    assert found == Split(*made)
    assert found.processes * found.micro * found.accumulation == batch


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["num_processes=3"],
            r"model\.pretraining\.batch_size=16: can't be split over 3 processes; set num_processes to one of 1, 2, 4, 8, 16",
        ),
        (["num_processes=32"], r"can't be split over 32 processes"),
        (
            ["num_processes=2", "micro_batch_size=3"],
            r"micro_batch_size=3: doesn't divide .* which is 8 rows; set one of 1, 2, 4, 8",
        ),
        (
            ["num_processes=2", "micro_batch_size=2", "safety_tune=tiny_kto"],
            r"safety_tune=kto estimates its reference point on the whole batch",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_before_anything_runs(
    grid: Callable[..., Any], overrides: list[str], told: str
) -> None:
    [cell] = grid("+experiment=tiny", *overrides)
    with pytest.raises(ConfigError, match=told):
        for stage in make_plan([cell]).stages.values():
            check_training(stage, needs(stage, cell.run, False, 0, 2), cell.run, None)


def test_no_way_of_training_is_in_a_key(grid: Callable[..., Any]) -> None:
    plain = set(make_plan(grid("+experiment=tiny")).stages)
    ways = [
        "deepspeed=zero1",
        "deepspeed=zero2",
        "deepspeed=zero3",
        "deepspeed=zero3_offload",
        "num_processes=2",
        "num_nodes=2",
    ]
    for way in [*ways, "micro_batch_size=2", "gradient_checkpointing=true", "engine.num_processes=2"]:
        assert set(make_plan(grid("+experiment=tiny", way)).stages) == plain, way
    assert set(make_plan(grid("+experiment=tiny", "adaptation.instruct.precision=bf16")).stages) != plain


def test_a_method_that_cannot_be_split_refuses_zero3(grid: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsafe.train.tuning import Supervised

    monkeypatch.setattr(Supervised, "zero3", False, raising=False)
    [cell] = grid("+experiment=tiny", "deepspeed=zero3")
    stage = next(s for s in make_plan([cell]).stages.values() if s.kind == "safety_tune")
    wanted = needs(stage, cell.run, True, 0, 2)
    assert wanted.processes == 2  # on a machine without GPUs: two ranks, to try it out
    with pytest.raises(
        ConfigError, match=r"deepspeed=zero3: safety_tune=sft can't train with weights split .* set deepspeed=zero2"
    ):
        check_training(stage, wanted, cell.run, deepspeed_settings(cell))


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler()
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="apt-get install g\\+\\+"):
        check_compiler({"PATH": str(tmp_path)})
    (tmp_path / "g++").touch(0o755)
    with pytest.raises(ConfigError, match="pip install ninja"):
        check_compiler({"PATH": str(tmp_path)})


def test_the_compiler_is_looked_for_where_ranks_run_on_the_cpu(
    grid: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlsafe.execute.executor import Executor
    from vlsafe.execute.survey import Survey
    from vlsafe.store import Store

    asked: list[str] = []
    monkeypatch.setattr("vlsafe.execute.executor.check_compiler", lambda: asked.append("asked"))
    for device, gpus, times in (("auto", ["0", "1"], 0), ("cpu", ["0", "1"], 1), ("auto", [], 1)):
        [cell] = grid("+experiment=tiny", "deepspeed=zero2", f"device={device}")
        plan = make_plan([cell])
        found = Survey(to_run=set(plan.stages))
        Executor(plan, Store(tmp_path), tmp_path, cell.run, found, deepspeed_settings(cell), gpus=gpus, cores=2).check()
        assert len(asked) == times, (device, gpus)
        asked.clear()


def test_what_is_ours_cannot_be_overridden_in_deepspeeds_json() -> None:
    with pytest.raises(ConfigError, match=r"deepspeed\.overrides\.train_batch_size: follows from other settings"):
        Zero(2, overrides={"train_batch_size": 8}).check()
    made = Zero(3, offload=True, overrides={"communication_data_type": "fp32"}).config("bf16", 4, 2, 1.0)
    assert made["communication_data_type"] == "fp32"
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (4, 2)
    assert made["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "train_batch_size" not in made
