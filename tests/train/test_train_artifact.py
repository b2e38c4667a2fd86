"""A model artifact: what is saved is what is loaded, under the model's own names, and nothing else passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import train_tiny as tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlsafe.errors import CheckError
from vlsafe.model.load import load_model, load_processor, pick_device, save_model, template_hash, verify_weights


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("parent"))


def test_saved_and_loaded_are_the_same_bits_under_the_same_names(parent: Path, tmp_path: Path) -> None:
    model, processor = load_model(parent, "cpu"), load_processor(parent)
    files = save_model(model, processor, tmp_path)
    assert [f.name for f in files] == ["model.safetensors"]
    with safe_open(files[0], framework="pt") as reader:
        assert set(reader.keys()) == set(model.state_dict())
    again = load_model(tmp_path, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not again.training
    assert template_hash(load_processor(tmp_path)) == template_hash(processor)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    config = tiny.text_config(16, 1, 32, 2)
    config.tie_word_embeddings = True
    model = LlamaForCausalLM(config)
    save_model(model, tiny.tokenizer(), tmp_path)
    again = load_model(tmp_path, "cpu")
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_loading_says_nothing(parent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(parent, "cpu")
    load_processor(parent)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_weights_that_do_not_fit(parent: Path, tmp_path: Path, fault: str) -> None:
    save_model(load_model(parent, "cpu"), load_processor(parent), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if fault == "missing":
        del weights["model.language_model.layers.0.self_attn.v_proj.weight"]
    else:
        weights["model.language_model.layers.9.self_attn.v_proj.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckError, match=rf"do not fit LlavaForConditionalGeneration \({fault} keys: 1, such as .*v_proj"):
        load_model(tmp_path, "cpu")


def test_what_was_written_otherwise_is_noticed(parent: Path, tmp_path: Path) -> None:
    model = load_model(parent, "cpu")
    files = save_model(model, load_processor(parent), tmp_path)
    with torch.no_grad():
        model.lm_head.weight.view(-1)[0] += 1e-6
    with pytest.raises(CheckError, match=r"'lm_head.weight' reads back with other bits"):
        verify_weights(model, files)


def test_an_architecture_that_nobody_has(parent: Path, tmp_path: Path) -> None:
    save_model(load_model(parent, "cpu"), load_processor(parent), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["NobodysModel"]}))
    with pytest.raises(CheckError, match=r"architectures\[0\] is 'NobodysModel'"):
        load_model(tmp_path, "cpu")


def test_devices_and_templates_are_asked_for_by_name() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(CheckError, match="device=cuda, but no CUDA device"):
            pick_device("cuda")
    bare = tiny.tokenizer()
    first = template_hash(bare)
    bare.chat_template += " "
    assert template_hash(bare) != first
    bare.chat_template = None
    with pytest.raises(CheckError, match="no chat template"):
        template_hash(bare)
