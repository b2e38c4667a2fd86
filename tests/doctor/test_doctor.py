"""The doctor finds what was taken away, names what mends it, and says nothing is missing where nothing is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.conftest import Launch
from vlsafe.doctor.finding import Finding, show

RELEASED = ("+experiment=llava15_released", "tracking=none")


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has downloaded nothing and has no token."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "WANDB_API_KEY", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # the hub is out of reach, wherever this runs


def doctor(launch: Launch, *overrides: str) -> tuple[int, str]:
    done = launch.run("doctor.py", f"outputs={launch.outputs}", *overrides)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, " ".join(done.stdout.split())


def test_the_microworld_lacks_nothing(launch: Launch) -> None:
    status, said = doctor(launch, "safety_tune=sft,dpo", "merge=ties")
    assert status == 0
    assert "2 cells: nothing is missing" in said


def test_a_preset_says_what_is_gated_downloaded_and_needed(launch: Launch) -> None:
    status, said = doctor(launch, *RELEASED)
    assert status == 1
    assert "https://huggingface.co/datasets/walledai/AdvBench" in said
    assert "hf auth login" in said
    assert "hf download llava-hf/llava-1.5-7b-hf" in said
    assert "GPU none is visible here" in said
    assert "7.06 billion parameters" in said
    assert not launch.outputs.exists()  # it only looks


def test_a_token_leaves_the_gate_to_be_asked(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    _, said = doctor(launch, *RELEASED)
    assert "gated; a token is there" in said
    assert "there is no token" not in said
    assert "hf_made_up" not in said


def test_without_a_network_what_is_not_here_is_missing(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, said = doctor(launch, *RELEASED)
    assert "model.lvlm: not here, and HF_HUB_OFFLINE is set" in said


def test_what_lies_in_the_cache_or_a_mirror_is_found(launch: Launch, tmp_path: Path) -> None:
    _, said = doctor(launch, *RELEASED)
    assert "model.lvlm: comes from the hub" in said
    assert "model.llm: its weights are pickled there" in said
    assert "python -m vlsafe.model.convert pickled MIRROR/lmsys/vicuna-7b-v1.5" in said
    snapshots = tmp_path / "huggingface" / "hub" / "models--llava-hf--llava-1.5-7b-hf" / "snapshots"
    snapshot = snapshots / "b234b804b114d9e37bb655e11cbbb5f5e971b7a9"
    mirror = tmp_path / "mirror" / "lmsys" / "vicuna-7b-v1.5"
    for folder in (snapshot, mirror):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "pytorch_model.bin").write_text("")
    _, said = doctor(launch, *RELEASED, f"local={tmp_path / 'mirror'}")
    assert "model.lvlm: in the hub's cache, and its weights are pickled (pytorch_model.bin)" in said
    assert f"model.llm: at {mirror}, and its weights are pickled (pytorch_model.bin)" in said
    for folder in (snapshot, mirror):
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
        (folder / "1.safetensors").write_text("")
    _, said = doctor(launch, *RELEASED, f"local={tmp_path / 'mirror'}")
    assert f"model.llm: at {mirror}, and 1 of its 2 shards are not there, the first is 2.safetensors" in said
    for folder in (snapshot, mirror):
        (folder / "2.safetensors").write_text("")
    _, said = doctor(launch, *RELEASED, f"local={tmp_path / 'mirror'}")
    assert "model.lvlm: in the hub's cache at b234b804" in said
    assert f"model.llm: at {mirror}" in said and f"{mirror}, and" not in said


def test_a_benchmark_or_a_data_set_without_its_pictures_is_missing(launch: Launch, tmp_path: Path) -> None:
    rows = [{"prompt": "what is it", "completion": "a kettle", "image": "1.png", "target": "a kettle"}]
    for name in ("ours.jsonl", "asked.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = f"source: {{folder: {tmp_path / 'asked.jsonl'}}}"
    given = (
        "+experiment=smollm2_laptop", "data=jsonl", "safety_tune=none", "eval.benchmarks=[mine]",
        f"data.projector.mine.dataset.source.folder={tmp_path / 'ours.jsonl'}",
        f"+eval.settings.mine={{name: jsonl, axis: helpfulness, needs_image: true, {folder}}}",
    )  # fmt: skip
    _, said = doctor(launch, *given)
    assert said.count("1.png: no such file") == 2
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    _, said = doctor(launch, *given)
    assert "1.png" not in said


def test_a_folder_that_is_not_there_is_named(launch: Launch) -> None:
    status, said = doctor(launch, *RELEASED, "+model.llm.folder=/no/such/model")
    assert status == 1
    assert "/no/such/model" in said
    assert "set model.llm.folder to where it is" in said


def test_a_cluster_without_slurm_and_a_tracker_without_a_key(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(launch.outputs))
    status, said = doctor(launch, "hydra/launcher=slurm", "tracking=wandb", "tracking.mode=online")
    assert status == 1
    assert "there is no sbatch on PATH" in said
    assert "wandb login" in said


def test_deepspeed_on_the_cpu_without_a_compiler(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, said = doctor(launch, "deepspeed=zero2", "device=cpu")
    assert status == 1
    assert "apt-get install g++" in said


def test_pictures_that_are_not_on_the_hub_are_asked_for(launch: Launch) -> None:
    status, said = doctor(launch, "+experiment=paper_llama2", "tracking=none")
    assert status == 1
    assert "pictures of LLaVA-Instruct" in said
    assert "meta-llama/Llama-2-7b-chat-hf" in said
    assert "data.instruct.llava_instruct.dataset.images={folder: /path}" in said
    assert "GPU memory: adaptation=llava instruct" in said
    assert "git clone https://github.com/ThuCCSLab/FigStep" in said


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_the_terminal(width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None)
    long = "a/very-long-organisation-name/with-a-model-of-a-very-long-name-too"
    show(
        [Finding("missing", long, "gated " * 20, f"accept https://huggingface.co/datasets/{long}"), Finding("fine", "x", "y")],
        console,
    )
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert [line[0] for line in lines if line[0] != " "] == ["✗", "✓"]
    assert "".join(text.getvalue().split()).count("accept") == 1


def test_zero3_and_offload_are_told_what_they_need_of_the_host(launch: Launch) -> None:
    _, said = doctor(launch, "+experiment=paper_llama2", "tracking=none", "deepspeed=zero3_offload", "num_processes=4")
    assert "CPU memory: loading for ZeRO-3" in said
    assert "CPU memory: offload" in said
    assert "num_processes=4" in said
    _, said = doctor(launch, "+experiment=paper_llama2", "tracking=none", "deepspeed=zero2")
    assert "CPU memory" not in said


def test_a_guards_memory_is_told(launch: Launch) -> None:
    _, said = doctor(launch, *RELEASED, "judge=llama_guard")
    assert "judging 16.1 GB for meta-llama/Llama-Guard-3-8B in 16 bits" in said
    assert "filtering" not in said
    _, said = doctor(launch, "+experiment=paper_llama2", "tracking=none", "adaptation.filter=llama_guard")
    assert "filtering 16.1 GB for meta-llama/Llama-Guard-3-8B in 16 bits" in said
