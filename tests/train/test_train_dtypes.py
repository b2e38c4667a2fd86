"""Whatever a parent is stored in, what trains is held in 32 bits, and what is published is in the dtype that was asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny
from safetensors.torch import load_file

from vlsafe.data.rows import TrainingData
from vlsafe.errors import CheckError, ConfigError, StageInterrupted
from vlsafe.model.load import in_dtype, load_model, load_processor, save_model
from vlsafe.registry import make
from vlsafe.settings import spec_of
from vlsafe.stage import Execution, StageContext
from vlsafe.train.adaptation import run_and_save
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import part_of
from vlsafe.train.phase import Phase

BF16 = Optimization(steps=6, batch_size=8, learning_rate=2e-4, precision="bf16")
FP32 = Optimization(steps=6, batch_size=8, learning_rate=2e-4)
BOTH: Any = ("language_model", "projector")
LORA = Lora(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model, stored in 32 bits and twice in 16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parents")
    found = {"float32": tiny.llava(folder / "float32")}
    for dtype in ("bfloat16", "float16"):
        found[dtype] = folder / dtype
        save_model(load_model(found["float32"], "cpu", dtype), load_processor(found["float32"]), found[dtype])
    return found


def phases(setting: Optimization, lora: Lora | None = None) -> list[Phase]:
    """As LLaVA: the second phase goes on from a projector that the first one has trained."""
    pictures, mixed = tiny.supervised(48, 1, pictures=1.0), tiny.supervised(48, 2)
    return [
        Phase("projector", "sft", lambda: pictures, setting, ("projector",), 5),
        Phase("instruct", "sft", lambda: mixed, setting, BOTH, 6, lora=lora),
    ]


def train(parent: Path, folder: Path, todo: list[Phase], save: Any = "parent", stop: int | None = None, **more: Any) -> Any:
    """The published weights and the facts; with `stop`, one try that ends after so many steps and one that goes on."""
    for last in (stop, None) if stop else (None,):
        seen = [0]

        def told(done: int, *_: Any, seen: list[int] = seen) -> None:
            seen[0] = done

        def asked(last: int | None = last, seen: list[int] = seen) -> bool:
            return last is not None and seen[0] >= last

        ctx = StageContext(folder / "out", folder / "work", {"model": parent}, Execution(device="cpu"), told, asked, **more)
        if last is None:
            run_and_save(todo, ctx, save)
        else:
            with pytest.raises(StageInterrupted, match="with a checkpoint"):
                run_and_save(todo, ctx, save)
    return load_file(ctx.out / "model.safetensors"), ctx.facts


def said(folder: Path) -> set[str]:
    """Every dtype that a model's configuration names."""
    config = json.loads((folder / "config.json").read_text())
    return {level["dtype"] for level in (config, config["text_config"], config["vision_config"]) if level.get("dtype")}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[n].dtype == other[n].dtype and one[n].equal(other[n]) for n in one)


@pytest.mark.parametrize(
    ("stored", "setting", "lora"),
    [("bfloat16", BF16, None), ("bfloat16", BF16, LORA), ("bfloat16", FP32, None), ("float16", BF16, LORA)],
)
def test_a_parent_of_16_bits_trains_in_32(
    parents: dict[str, Path], tmp_path: Path, stored: str, setting: Optimization, lora: Lora | None
) -> None:
    before = load_file(parents[stored] / "model.safetensors")
    whole, facts = train(parents[stored], tmp_path / "whole", phases(setting, lora), "fp32")
    trained = {n for n in before if not before[n].float().equal(whole[n])}
    assert {part_of(n) for n in trained} == set(BOTH)
    assert {t.dtype for t in whole.values()} == {torch.float32}
    # Steps this small are lost where weights have 16 bits: most numbers moved by less than the gap to the next one.
    moved = {n: (whole[n] - before[n].float()).abs() for n in trained}
    gaps = {n: before[n].float().abs() * torch.finfo(before[n].dtype).eps / 2 for n in trained}
    assert sum(int(((moved[n] > 0) & (moved[n] < gaps[n])).sum()) for n in trained) > 100
    weights = facts["phases"]["instruct"]["weights"]
    assert weights["trained"] == "float32"
    assert weights["frozen"] == ("bfloat16" if stored == "bfloat16" and setting is BF16 else "float32")
    assert facts["weights"] == {"parent": stored, "published": "float32"}

    like, facts = train(parents[stored], tmp_path / "like", phases(setting, lora))
    assert facts["weights"] == {"parent": stored, "published": stored}
    assert {t.dtype for t in like.values()} == {before["lm_head.weight"].dtype}
    assert all(like[n].equal(before[n]) for n in before if n not in trained), "what is frozen keeps its bits"
    assert same(like, {n: t.to(before[n].dtype) for n, t in whole.items()})
    assert said(tmp_path / "like" / "out") == {stored}
    assert said(tmp_path / "whole" / "out") == {"float32"}
    assert load_model(tmp_path / "whole" / "out", "cpu").lm_head.weight.equal(whole["lm_head.weight"])


@pytest.mark.parametrize("lora", [None, LORA])
def test_what_was_trained_in_32_bits_is_published_in_16(parents: dict[str, Path], tmp_path: Path, lora: Lora | None) -> None:
    whole, _ = train(parents["float32"], tmp_path / "whole", phases(FP32, lora))
    half, facts = train(parents["float32"], tmp_path / "half", phases(FP32, lora), "bf16")
    assert facts["weights"] == {"parent": "float32", "published": "bfloat16"}
    assert {t.dtype for t in whole.values()} == {torch.float32}
    assert same(half, {n: t.bfloat16() for n, t in whole.items()})
    assert said(tmp_path / "half" / "out") == {"bfloat16"}
    assert load_model(tmp_path / "half" / "out", "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize("stop", [3, 9])
def test_stopped_and_resumed_it_ends_with_the_same_bits(
    parents: dict[str, Path], tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either phase: the second one begins from what the first one trained, in 32 bits, and computes in 16 as that did."""
    monkeypatch.setattr("vlsafe.train.watch.FLUSH_SECONDS", 0.0)  # so that each step is told
    whole, _ = train(parents["bfloat16"], tmp_path / "one", phases(BF16), "fp32")
    again, facts = train(parents["bfloat16"], tmp_path / "two", phases(BF16), "fp32", stop=stop)
    assert facts["phases"]["projector" if stop < 6 else "instruct"]["resumed_from_step"] > 0
    assert same(whole, again)


@pytest.mark.parametrize("lora", [None, LORA])
def test_snapshots_are_published_as_the_model_is(parents: dict[str, Path], tmp_path: Path, lora: Lora | None) -> None:
    def taker(step: int) -> Any:
        return lambda write, facts: write(tmp_path / f"step-{step}")

    for save, dtype in (("parent", "bfloat16"), ("fp32", "float32")):
        todo = phases(BF16, lora)
        end, _ = train(parents["bfloat16"], tmp_path / save, todo, save, snapshots={step: taker(step) for step in (0, 4)})
        without, _ = train(parents["bfloat16"], tmp_path / f"{save}-without", todo, save)
        assert same(end, without)
        for step in (0, 4):
            assert {str(t.dtype) for t in load_file(tmp_path / f"step-{step}" / "model.safetensors").values()} == {
                f"torch.{dtype}"
            }
            assert said(tmp_path / f"step-{step}") == {dtype}
            load_model(tmp_path / f"step-{step}", "cpu")


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_the_reference_computes_as_the_steps_do(parents: dict[str, Path], tmp_path: Path, stored: str) -> None:
    """Before the first update the model is its reference, so every margin is zero."""
    rows = tiny.preferences(24, 3)
    for setting in (BF16, FP32):
        phase = Phase("pairs", "dpo", lambda: rows, setting, BOTH, 7, {"beta": 0.5})
        folder = tmp_path / setting.precision
        train(parents[stored], folder, [phase])
        first = json.loads((folder / "out" / "train_log.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)


def test_a_number_that_16_bits_cannot_hold() -> None:
    assert in_dtype(torch.tensor([1e5]), torch.bfloat16, "w").isfinite().all()
    with pytest.raises(CheckError, match="w: holds numbers that float16 can't; set save_dtype=fp32 or bf16"):
        in_dtype(torch.tensor([1e5]), torch.float16, "w")


class Rows(TrainingData):
    def supervised(self, purpose: Any, n: int, seed: int) -> Any:
        return tiny.supervised(n, seed, 1.0 if purpose == "projector" else 0.5)


STEPS = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}
COMPONENTS = [
    ("adaptation", {"name": "llava", "projector": STEPS, "instruct": STEPS}),
    ("adaptation", {"name": "single_stage", "optimization": STEPS, "pairs": 0.5}),
    ("safety_tune", {"name": "sft", "optimization": STEPS, "helpful": 0.5}),
    ("safety_tune", {"name": "dpo", "optimization": STEPS, "helpful": 0.5, "beta": 0.1}),
    ("safety_tune", {"name": "kto", "optimization": STEPS, "helpful": 0.5, "beta": 0.1}),
]


@pytest.mark.parametrize(("group", "settings"), COMPONENTS, ids=lambda s: s["name"] if isinstance(s, dict) else s)
def test_every_training_has_the_setting_and_its_key_knows_it_where_it_is_set(group: str, settings: Any) -> None:
    assert "save_dtype" not in spec_of(make(group, settings))
    assert spec_of(make(group, {**settings, "save_dtype": "bf16"}))["save_dtype"] == "bf16"
    with pytest.raises(ConfigError, match=rf"{group}.save_dtype=float32: choose from: bf16, fp32, parent"):
        make(group, {**settings, "save_dtype": "float32"})


def test_joint_training_publishes_what_the_adaptation_does(parents: dict[str, Path], tmp_path: Path) -> None:
    """As all that its optimisation says: of the tuning only its rows count, in the key too."""
    joint = {**COMPONENTS[2][1], "order": "joint"}
    tuning, plain = make("safety_tune", {**joint, "save_dtype": "fp32"}), make("safety_tune", joint)
    tuning.check()
    assert tuning.joint_spec() == plain.joint_spec()
    adaptation = make("adaptation", {**COMPONENTS[0][1], "save_dtype": "bf16"})
    ctx = StageContext(tmp_path / "out", tmp_path / "work", {"model": parents["float32"]}, Execution(device="cpu"))
    tuning.run(Rows(), ctx, adaptation=adaptation)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
