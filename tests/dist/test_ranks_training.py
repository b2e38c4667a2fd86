"""Two ranks on the CPU compute what one process does, for each ZeRO stage, method and kind of weights: stopped, killed, resumed
too."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import train_qwen
import train_tiny as tiny

from vlsafe.model.load import load_model, load_processor, save_model

pytestmark = pytest.mark.dist
HERE = Path(__file__).parent
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SAME = [f"{method}{lora}@{way}" for method in ("sft", "dpo") for lora in ("", "-lora") for way in ("none", "zero2", "zero3")]
MORE = [
    "sft@zero1", "sft@zero3_offload", "kto@none", "kto@zero2", "kto@zero3", "sft-two@none", "sft-two@zero2", "sft-two@zero3",
    "sft-accumulate@none", "sft-accumulate@zero2", "sft-accumulate@zero3", "sft-recompute@zero3", "sft-snapshots@none",
    "sft-snapshots@zero3", "sft-lora-snapshots@zero3", "dpo-accumulate@none", "dpo-accumulate@zero2",
    "sft-rates-short@none", "sft-rates-short@zero2", "sft-rates-short@zero3", "sft-half-save32@zero3",
]  # fmt: skip
QWEN = ["sft-qwen@none", "sft-qwen@zero2", "sft-qwen@zero3", "dpo-qwen@zero3", "kto-qwen@none"]
BF16 = ["sft-bf16@none", "sft-bf16@zero2", "sft-bf16@zero3"]
HALF = [f"sft-{kind}half-bf16{save}@{way}" for kind, save, way in (
    ("", "", "none"), ("", "-save32", "none"), ("", "", "zero3"), ("", "-save32", "zero3"), ("lora-", "-save32", "zero3"),
    ("", "-save32", "zero2"),
)]  # fmt: skip
ALONE = [
    "sft", "sft-lora", "dpo", "dpo-lora", "kto", "sft-two", "sft-bf16", "sft-snapshots", "sft-lora-snapshots",
    "sft-rates-short", "sft-half-save32", "sft-half-bf16", "sft-half-bf16-save32", "sft-lora-half-bf16-save32",
    "sft-qwen", "dpo-qwen", "kto-qwen",
]  # fmt: skip


def run(folder: Path, launcher: list[str], *cases: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    command = [*launcher, str(HERE / "dist_cases.py"), str(folder), *cases]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=540)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, in one start of the ranks and in one of a process alone."""
    folder = tmp_path_factory.mktemp("dist")
    tiny.llava(folder / "parent")
    train_qwen.qwen(folder / "qwen")
    half(folder)
    many = sorted(
        [*SAME, *MORE, *QWEN, *BF16, *HALF], key=lambda case: not case.endswith("@none")
    )  # DeepSpeed stays in a process
    for launcher, cases in (([sys.executable], [f"{name}@none" for name in ALONE]), (RANKS, many)):
        done = run(folder, launcher, *cases)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return folder


def half(folder: Path) -> None:
    """The same model, stored in bf16."""
    save_model(load_model(folder / "parent", "cpu", "bfloat16"), load_processor(folder / "parent"), folder / "half")


def alone(case: str) -> str:
    return case.partition("@")[0].replace("-accumulate", "").replace("-recompute", "") + "@none"


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "train_log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def furthest(one: Path, many: Path) -> float:
    a, b = weights(one), weights(many)
    assert a.keys() == b.keys()
    assert all(a[name].dtype == b[name].dtype for name in a)
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


@pytest.mark.parametrize("case", [*SAME, *MORE, *QWEN])
def test_losses_and_weights_are_those_of_one_process(folder: Path, case: str) -> None:
    one, many = folder / "one" / alone(case), folder / "many" / case
    a, b = log(one), log(many)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for name in ("loss", "lr", "grad_norm", *(n for n in ("reward_margin", "reward_accuracy", "kl") if n in a[0])):
        assert max(abs(x[name] - y[name]) for x, y in zip(a, b, strict=True)) < 2e-5, name
    assert furthest(one / "out", many / "out") < 2e-5
    start = load_model(folder / ("qwen" if case in QWEN else "parent"), "cpu").state_dict()
    end = weights(one / "out")
    assert max(float((end[name] - start[name]).abs().max()) for name in end) > 1e-3  # which is what the ranks agree on


@pytest.mark.parametrize("case", ["sft@zero2", "sft@zero3", "dpo-lora@zero3"])
def test_zero_with_one_process_too(folder: Path, tmp_path: Path, case: str) -> None:
    """As on one GPU: without a launcher, a port or MPI."""
    tiny.llava(tmp_path / "parent")
    done = run(tmp_path, [sys.executable], case)
    assert done.returncode == 0, done.stderr[-4000:]
    one, zero = folder / "one" / alone(case), tmp_path / "one" / case
    assert max(abs(x["loss"] - y["loss"]) for x, y in zip(log(one), log(zero), strict=True)) < 2e-5
    assert furthest(one / "out", zero / "out") < 2e-5


def test_the_rows_have_what_makes_ranks_hang_and_momentum_drift() -> None:
    """A step whose second half has no picture and whose first has some, and steps without any, after steps with some."""
    from dist_cases import phases

    from vlsafe.data.order import batches

    for what in ({"sft"}, {"dpo"}):
        phase = phases(what)[0]
        pictured = [bool(row["images"]) for row in phase.rows()]
        order = batches(pictured, phase.optimization.batch_size, phase.optimization.steps, phase.seed)
        halves = [(any(pictured[i] for i in batch[:4]), any(pictured[i] for i in batch[4:])) for batch in order]
        assert (True, False) in halves
        assert (False, False) in halves[halves.index((True, True)) :]


@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_without_a_stand_in_for_absent_pictures_ranks_get_out_of_step(tmp_path: Path, way: str) -> None:
    """So that the tests above, which pass with it, say something."""
    tiny.llava(tmp_path / "parent")
    done = run(tmp_path, RANKS, f"sft-bare@{way}")
    assert done.returncode != 0
    assert "collective mismatch" in done.stderr
    assert not (tmp_path / "many" / f"sft-bare@{way}" / "facts.json").exists()


def test_pytorch_s_own_way_needs_no_stand_in(folder: Path, tmp_path: Path) -> None:
    """DistributedDataParallel looks for unused weights in every step."""
    tiny.llava(tmp_path / "parent")
    done = run(tmp_path, RANKS, "sft-bare@none")
    assert done.returncode == 0, done.stderr[-4000:]
    assert digest(tmp_path / "many" / "sft-bare@none") == digest(folder / "many" / "sft@none")


@pytest.mark.parametrize("case", BF16)
def test_bf16_computes_in_16_bits_and_keeps_weights_in_32(folder: Path, case: str) -> None:
    one, many = folder / "one" / alone(case), folder / "many" / case
    assert all(str(tensor.dtype) == "torch.float32" for tensor in weights(many / "out").values())
    assert max(abs(x["loss"] - y["loss"]) for x, y in zip(log(one), log(many), strict=True)) < 2e-2
    losses = [line["loss"] for line in log(many)]
    full = [line["loss"] for line in log(folder / "one" / "sft@none")]
    assert 0 < max(abs(x - y) for x, y in zip(losses, full, strict=True)) < 5e-2
    trained = [name for name, tensor in weights(many / "out").items() if (tensor.bfloat16().float() != tensor).any()]
    assert any("mlp" in name for name in trained)  # the optimiser's own, not what was computed with


@pytest.mark.parametrize("case", HALF)
def test_a_parent_of_16_bits_is_trained_in_32_and_published_as_asked(folder: Path, case: str) -> None:
    one, many = weights(folder / "one" / alone(case) / "out"), weights(folder / "many" / case / "out")
    start = load_model(folder / "half", "cpu").state_dict()
    assert many.keys() == one.keys() == start.keys()
    assert {str(tensor.dtype) for tensor in many.values()} == {"torch.float32" if "save32" in case else "torch.bfloat16"}
    frozen = [name for name in start if "vision_tower" in name]
    assert frozen and all(many[name].to(start[name].dtype).equal(start[name]) for name in frozen)
    changed = [name for name in start if not many[name].to(one[name].dtype).float().equal(start[name].float())]
    assert {"multi_modal_projector" in name for name in changed} == {True, False}
    assert max(abs(float((one[name].float() - many[name].float()).abs().max())) for name in changed) < 1e-2
    if "save32" in case:  # the optimiser's own weights, not what was computed with
        assert any((many[name].bfloat16().float() != many[name]).any() for name in changed)
    facts = json.loads((folder / "many" / case / "facts.json").read_text())
    assert facts["weights"] == {"parent": "bfloat16", "published": "float32" if "save32" in case else "bfloat16"}
    assert facts["phases"]["instruct"]["weights"]["trained"].startswith("float32")
    a, b = log(folder / "one" / alone(case)), log(folder / "many" / case)
    assert max(abs(x["loss"] - y["loss"]) for x, y in zip(a, b, strict=True)) < 2e-2


@pytest.mark.parametrize("way", ["none", "zero2", "zero3"])
def test_rows_over_the_longest_allowed_are_left_out(folder: Path, way: str) -> None:
    facts = json.loads((folder / "many" / f"sft-rates-short@{way}" / "facts.json").read_text())["phases"]["instruct"]
    assert 0 < sum(facts["dropped_rows_by_source"].values()) < 28
    assert sum(facts["rows_by_source"].values()) + sum(facts["dropped_rows_by_source"].values()) == 56


@pytest.mark.parametrize("case", ["sft-snapshots@none", "sft-snapshots@zero3", "sft-lora-snapshots@zero3"])
def test_snapshots_are_whole_models(folder: Path, case: str) -> None:
    for step in (0, 3, 5):
        load_model(folder / "many" / case / f"step-{step}", "cpu")
        assert furthest(folder / "one" / alone(case) / f"step-{step}", folder / "many" / case / f"step-{step}") < 2e-5


def test_what_was_accumulated_is_said(folder: Path) -> None:
    facts = json.loads((folder / "many" / "sft-accumulate@zero2" / "facts.json").read_text())["phases"]["instruct"]
    assert (facts["micro_batch_size"], facts["gradient_accumulation"]) == (2, 2)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "out" / "model.safetensors").read_bytes()).hexdigest()


def test_stopped_and_resumed_it_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    tiny.llava(tmp_path / "parent")
    cases = ["sft-two@none", "sft-two@zero2", "sft-two@zero3"]
    done = run(tmp_path, RANKS, *(c for case in cases for c in (f"{case}:stop=7", case)))
    assert done.returncode == 0, done.stderr[-4000:]
    for case in cases:
        facts = json.loads((tmp_path / "many" / case / "facts.json").read_text())["phases"]
        assert facts["instruct"]["resumed_from_step"] > 0
        assert digest(tmp_path / "many" / case) == digest(folder / "many" / case)


def test_a_killed_rank_ends_it_and_it_resumes_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    tiny.llava(tmp_path / "parent")
    case = "sft-checkpoints@zero3"
    killed = run(tmp_path, RANKS, f"{case}:kill=1,5")
    assert killed.returncode != 0
    assert not (tmp_path / "many" / case / "facts.json").exists()
    done = run(tmp_path, RANKS, case)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads((tmp_path / "many" / case / "facts.json").read_text())["phases"]["instruct"]
    assert facts["resumed_from_step"] >= 4
    assert digest(tmp_path / "many" / case) == digest(folder / "many" / "sft@zero3")


@pytest.mark.parametrize(("case", "rank"), [("sft-checkpoints@zero3", 1), ("sft-checkpoints@none", 0)])
def test_a_rank_that_is_killed_while_it_saves_leaves_the_checkpoint_before(
    folder: Path, tmp_path: Path, case: str, rank: int
) -> None:
    tiny.llava(tmp_path / "parent")
    killed = run(tmp_path, RANKS, f"{case}:half={rank}")
    assert killed.returncode != 0
    left = {path.name: (path / "complete.json").exists() for path in (tmp_path / "many" / case).glob("work/*/checkpoint-*")}
    assert left == {"checkpoint-4": True, "checkpoint-5": False}
    done = run(tmp_path, RANKS, case)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads((tmp_path / "many" / case / "facts.json").read_text())["phases"]["instruct"]
    assert facts["resumed_from_step"] == 4
    assert digest(tmp_path / "many" / case) == digest(folder / "many" / case.replace("-checkpoints", ""))


def test_a_checkpoint_of_another_layout_is_told_and_dropped(folder: Path, tmp_path: Path) -> None:
    """ZeRO's lie in as many pieces as there were ranks: one process starts the phase again, and ends with its own result."""
    tiny.llava(tmp_path / "parent")
    assert run(tmp_path, RANKS, "sft@zero3:stop=4").returncode == 0
    (tmp_path / "one").mkdir()
    (tmp_path / "many" / "sft@zero3").rename(tmp_path / "one" / "sft@none")
    done = run(tmp_path, [sys.executable], "sft@none")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "written by zero3 over 2" in done.stderr
    assert digest(tmp_path / "one" / "sft@none") == digest(folder / "one" / "sft@none")


def encoded_by(folder: Path) -> dict[int, list[int]]:
    """The rows that each rank encoded, in all tries."""
    return {int(f.stem[-1]): [int(line) for line in f.read_text().split()] for f in folder.glob("encoded-by-*.txt")}


def test_each_row_is_encoded_by_one_rank_and_by_one_try(tmp_path: Path) -> None:
    tiny.llava(tmp_path / "parent")
    case = "sft-noted@none"
    assert run(tmp_path, [sys.executable], case).returncode == 0
    for how in (":stop=4", ""):
        done = run(tmp_path, RANKS, f"{case}{how}")
        assert done.returncode == 0, done.stderr[-4000:]
        assert encoded_by(tmp_path / "many" / case) == {0: list(range(28)), 1: list(range(28, 56))}
    one, many = tmp_path / "one" / case, tmp_path / "many" / case
    assert furthest(one / "out", many / "out") < 2e-5
    a, b = (json.loads((f / "facts.json").read_text())["phases"]["instruct"] for f in (one, many))
    assert b["resumed_from_step"] > 0
    for name in (
        "rows_by_source",
        "supervised_tokens_by_source",
        "tokens_by_source",
        "broken_rows_by_source",
        "image_features",
    ):
        assert a[name] == b[name], name


@pytest.mark.parametrize("way", ["none", "zero3"])
def test_a_row_that_one_rank_can_t_encode_ends_all_with_its_reason(tmp_path: Path, way: str) -> None:
    tiny.llava(tmp_path / "parent")
    case = f"sft-noted-wrong@{way}"
    done = run(tmp_path, RANKS, case)
    assert done.returncode != 0
    assert done.stderr.count("CheckError: row 41 of source 'text': has no answer of the assistant to learn from") == 2
    assert 41 in encoded_by(tmp_path / "many" / case)[1]
    assert not (tmp_path / "many" / case / "facts.json").exists()
