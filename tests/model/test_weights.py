"""Checkpoint folders: read and written as safetensors' own library does, and refused where they can't be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlsafe.errors import CheckError
from vlsafe.model.weights import (
    INDEX,
    SINGLE,
    TensorInfo,
    auxiliary_files,
    copy_auxiliary,
    open_checkpoint,
    shards_of,
    write_checkpoint,
)

TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "wide": torch.linspace(0, 1, 6, dtype=torch.float64).reshape(2, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "weights": torch.randn(4, 3),
    "half": torch.randn(7).half(),
    "brain": torch.randn(3, 1, 2).bfloat16(),
    "counts": torch.arange(4),
    "number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "ünïcode": torch.ones(2, dtype=torch.int32),
}


def layout(tensors: dict[str, torch.Tensor]) -> list[TensorInfo]:
    return [TensorInfo(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in tensors.items()]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[n].dtype == t.dtype and torch.equal(one[n], t) for n, t in other.items())


def test_it_reads_what_safetensors_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE, {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert {info.name: info for info in layout(TENSORS)} == dict(checkpoint.tensors)
    assert same({name: checkpoint.read(name) for name in checkpoint.tensors}, TENSORS)


@pytest.mark.parametrize("limit", [10**9, 50, 1])
def test_safetensors_reads_what_it_writes(limit: int, tmp_path: Path) -> None:
    files = write_checkpoint(tmp_path, layout(TENSORS), lambda info: TENSORS[info.name], limit)
    assert sorted(files) == sorted(tmp_path.iterdir())
    found: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        found |= load_file(file)
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert same(found, TENSORS)
    checkpoint = open_checkpoint(tmp_path)
    assert same({name: checkpoint.read(name) for name in checkpoint.tensors}, TENSORS)
    if limit < 10**9:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["weight_map"].keys() == TENSORS.keys()
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
        assert index["metadata"]["total_parameters"] == sum(t.numel() for t in TENSORS.values())


def test_what_is_read_is_ones_own(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / SINGLE)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.read("x").zero_()
    assert checkpoint.read("x").tolist() == [1.0] * 3


def test_shards_are_filled_in_order() -> None:
    infos = [TensorInfo(str(i), "float32", (n,)) for i, n in enumerate((10, 20, 5, 90, 1, 1))]
    assert [[i.name for i in shard] for shard in shards_of(infos, 120)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]


def test_shards_load_in_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False
    )
    model = transformers.LlamaForCausalLM(config)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    write_checkpoint(tmp_path, layout(state), lambda info: state[info.name], 600)
    config.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded, seen = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(seen[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(dict(loaded.state_dict()), state)


def test_another_shape_or_dtype_than_announced_is_refused(tmp_path: Path) -> None:
    infos = [TensorInfo("x", "float32", (2, 3))]
    for wrong in (torch.ones(3, 2), torch.ones(2, 3).half()):
        with pytest.raises(CheckError, match=r"'x' should have been written as \(2, 3\) float32, and came as"):
            write_checkpoint(tmp_path, infos, lambda _, wrong=wrong: wrong)


def _truncate(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-3])


def _garble(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:8] + b"#" + file.read_bytes()[9:])


def _pointer(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\n")


def _both(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def _shards(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _disagree(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"z": "model-00001-of-00001.safetensors"}}))


def _outside(folder: Path) -> None:
    (folder / SINGLE).rename(folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))


def _adapter(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "adapter_model.safetensors")


def _empty(folder: Path) -> None:
    (folder / SINGLE).unlink()


def _pickled(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model-00001-of-00001.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, "truncated; copy or build it again"),
        (_garble, "its header is unreadable"),
        (_pointer, "not a safetensors file, or truncated"),
        (_both, f"holds both {SINGLE} and {INDEX}"),
        (_shards, "names model-00002-of-00002.safetensors, not there"),
        (_disagree, "disagree about x, z"),
        (_outside, "not there"),
        (_adapter, r"a PEFT adapter without its model.*merge_and_unload"),
        (_empty, f"no weights; expected {SINGLE}"),
        (_pickled, r"pickled, which could run code.*vlsafe\.model\.convert"),
    ],
)
def test_folders_that_cannot_be_trusted_are_refused(spoil, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.ones(3)}, folder / SINGLE)
    spoil(folder)
    with pytest.raises(CheckError, match=message):
        open_checkpoint(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_what_belongs_to_a_model_is_copied_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    target.mkdir()
    belongs = ["LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "tokenizer.json"]
    belongs += ["tokenizer.model", "tokenizer_config.json", "vocab.json", "special_tokens_map.json"]
    belongs += ["preprocessor_config.json", "processor_config.json"]
    for name in [*belongs, "model.safetensors", "manifest.json", "training_args.bin", "optimizer.pt", "custom_code.py", INDEX]:
        (source / name).write_text(name)
    (source / "additional_chat_templates" / "tool.jinja").write_text("x")
    assert sorted(copy_auxiliary(source, target)) == sorted([*belongs, "additional_chat_templates"])
    assert [p.name for p in auxiliary_files(target)] == [p.name for p in auxiliary_files(source)]
    assert (target / "additional_chat_templates" / "tool.jinja").read_text() == "x"
    assert copy_auxiliary(source, tmp_path / "target", leave_out=belongs) == ["additional_chat_templates"]
