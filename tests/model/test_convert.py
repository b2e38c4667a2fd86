"""Pickled weights become safetensors by one command, which reads tensors and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.model.conftest import LLAMA2
from vlsafe.errors import CheckError
from vlsafe.model.adapters import add_adapters
from vlsafe.model.convert import convert
from vlsafe.model.weights import open_checkpoint
from vlsafe.sources import Source


@pytest.fixture
def pickled(hub: Callable[[str], Source], tmp_path: Path) -> Path:
    """The stand-in of LLaMA-2, its shards pickled as the hub has many."""
    folder = tmp_path / "pickled"
    shutil.copytree(str(hub(LLAMA2).path), folder)
    checkpoint = open_checkpoint(folder)
    weight_map = {}
    for number in (1, 2):
        names = [n for i, n in enumerate(checkpoint.tensors) if i % 2 == number - 1]
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: checkpoint.read(name) for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_converted_model_is_the_same_model(hub: Callable[[str], Source], pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=f"python -m vlsafe.model.convert {pickled} NEW_FOLDER"):
        open_checkpoint(pickled)
    command = [sys.executable, "-m", "vlsafe.model.convert", str(pickled), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("21 tensors written")
    before, after = open_checkpoint(Path(str(hub(LLAMA2).path))), open_checkpoint(tmp_path / "new")
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.tensors)
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert not list((tmp_path / "new").glob("*.bin"))


def test_converted_adapters_are_the_same_adapters(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    tensors = {f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight": torch.randn(2, 2) for side in "AB"}
    torch.save(tensors, old / "adapter_model.bin")
    with pytest.raises(CheckError, match=f"python -m vlsafe.model.convert {old} NEW_FOLDER"):
        add_adapters(None, old, "it")  # type: ignore[arg-type]  # no model is looked at
    assert convert(old, new) == 2
    assert (new / "adapter_config.json").read_bytes() == (old / "adapter_config.json").read_bytes()
    after = load_file(new / "adapter_model.safetensors")
    assert after.keys() == tensors.keys() and all(torch.equal(after[name], tensors[name]) for name in tensors)
    (old / "non_lora_trainables.bin").write_bytes(b"")
    with pytest.raises(CheckError, match=r"non_lora_trainables\.bin holds what was trained beside the adapters"):
        convert(old, tmp_path / "other")


class Harm:
    def __reduce__(self) -> object:
        return print, ("this must never be printed",)


def test_a_pickle_that_holds_more_than_tensors_is_not_read(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model.norm.weight": Harm()}, pickled / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckError, match="holds more than tensors, or is damaged"):
        convert(pickled, tmp_path / "new")
    assert "never be printed" not in capsys.readouterr().out


def test_what_is_not_there_is_named(pickled: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(CheckError, match="is not empty"):
        convert(pickled, tmp_path / "full")
    (pickled / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckError, match=r"names pytorch_model-00002-of-00002\.bin, not there"):
        convert(pickled, tmp_path / "new")
    with pytest.raises(CheckError, match="nothing to convert"):
        convert(tmp_path, tmp_path / "new")
