"""A second family is merged by the same accounting: its own parts are copied, its language model is merged, in any layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.merge.conftest import Merged
from tests.merge.test_methods import METHODS
from vlsafe.errors import CheckError
from vlsafe.merge.methods.linear import Linear
from vlsafe.model.families import QWEN2_5_VL
from vlsafe.model.load import load_model, load_processor
from vlsafe.model.parts import canonical_names, part_of
from vlsafe.model.weights import open_checkpoint
from vlsafe.stand_in.models import write_llm
from vlsafe.stand_in.qwen import write_lvlm

Merge = Callable[..., Merged]
IN_MEMORY, OF_THE_HUB = (layout.name for layout in QWEN2_5_VL.layouts)


@pytest.fixture(scope="module", params=["qwen2", "qwen2_3b"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, llm = tmp_path_factory.mktemp("models"), request.param
    write_llm(folder / "llm", llm, seed=4)
    return {
        "base": write_lvlm(folder / "base", IN_MEMORY, llm, seed=1),
        "one": write_lvlm(folder / "one", OF_THE_HUB, llm, seed=2, shards=3),
        "two": write_lvlm(folder / "two", IN_MEMORY, llm, seed=3),
        "llm": folder / "llm",
    }


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """By canonical name."""
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(stored) for name, stored in canonical_names(checkpoint.tensors).items()}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_method_merges_the_language_model_and_copies_the_rest(models: dict[str, Path], merge: Merge, method: str) -> None:
    merged = merge(METHODS[method](), models["one"], models["two"], base=models["base"], carrier=models["one"])
    got, one = tensors(merged.out), tensors(models["one"])
    assert got.keys() == one.keys()
    for name, tensor in got.items():
        language = part_of(name).startswith("language_model")
        assert torch.equal(tensor, one[name]) == (not language), name
    model, processor = load_model(merged.out, "cpu"), load_processor(merged.out)
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert processor.image_processor.size == load_processor(models["one"]).image_processor.size


def test_layouts_of_names_are_matched(models: dict[str, Path], merge: Merge) -> None:
    merged = merge(Linear(weights=(1.0, 3.0)), models["one"], models["two"])
    one, two = tensors(models["one"]), tensors(models["two"])
    for name, tensor in tensors(merged.out).items():
        if part_of(name).startswith("language_model"):
            assert torch.equal(tensor, ((one[name].double() + 3 * two[name].double()) / 4).to(tensor.dtype)), name


def test_the_language_model_that_it_came_from_is_merged_back_in(models: dict[str, Path], merge: Merge) -> None:
    merged = merge(Linear(weights=(0.0, 1.0)), models["two"], models["llm"], carrier=models["two"])
    llm, two, got = tensors(models["llm"]), tensors(models["two"]), tensors(merged.out)
    for name, tensor in got.items():
        assert torch.equal(tensor, llm[name] if part_of(name).startswith("language_model") else two[name]), name


def test_the_projector_can_be_merged_alone(models: dict[str, Path], merge: Merge) -> None:
    merged = merge(Linear(scope="projector"), models["one"], models["two"])
    changed = {e["name"] for e in merged.report["tensors"] if e["rule"] == "merged"}
    assert {name.removeprefix("model.").rsplit(".", 1)[0] for name in changed} == {
        "visual.merger.ln_q",
        "visual.merger.mlp.0",
        "visual.merger.mlp.2",
    }


def test_another_family_is_no_partner(models: dict[str, Path], merge: Merge, make_model: Callable[..., Path]) -> None:
    with pytest.raises(CheckError, match=r"would be silently wrong: .* has no 'model\.language_model\.layers\.\d\.self_attn"):
        merge(Linear(scope="layers"), make_model("llava", 1), models["two"])
