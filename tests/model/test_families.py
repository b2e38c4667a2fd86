"""What is known of a family is what its model and its processor do, in each layout that its checkpoints have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.eval import tiny
from vlsafe.errors import CheckError
from vlsafe.model.families import (
    FAMILIES,
    LLAVA,
    QWEN2_5_VL,
    blank_picture,
    family_of,
    family_of_architecture,
    feature_counts,
)
from vlsafe.model.load import load_model, load_processor, save_model
from vlsafe.model.parts import canonical_name, layout_of
from vlsafe.model.weights import open_checkpoint
from vlsafe.stand_in.models import MODELS
from vlsafe.stand_in.qwen import write_lvlm

IN_MEMORY, OF_THE_HUB = (layout.name for layout in QWEN2_5_VL.layouts)
SIZES = ((28, 28), (20, 90), (300, 120), (64, 64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("families")
    return {
        "llava": tiny.build(root / "llava"),
        "qwen2.5-vl": write_lvlm(root / "hub", OF_THE_HUB, shards=3),
        "saved": write_lvlm(root / "saved", IN_MEMORY),
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_record_says_what_model_and_processor_do(folders: dict[str, Path], family: Any) -> None:
    from PIL import Image

    folder = folders[family.name]
    model, processor = load_model(folder, "cpu"), load_processor(folder)
    config = json.loads((folder / "config.json").read_text())
    assert family_of(model) is family_of(processor) is family_of_architecture(config["architectures"][0], "here") is family
    pictures = [Image.new("RGB", size) for size in SIZES] + [blank_picture(processor)]
    made = family.pictures(processor.image_processor(pictures, return_tensors="pt"))
    features = feature_counts(model, made)
    assert features == [family.image_tokens(processor, picture.size) for picture in pictures]
    assert features == [family.image_tokens(processor, family.shown_as(processor, picture.size)) for picture in pictures]
    for picture, shape, count in zip(pictures, family.shapes(made), features, strict=True):
        alone = processor(images=[picture], text=[processor.image_token], return_tensors="pt")
        assert int((alone["input_ids"] == model.config.image_token_id).sum()) == count
        assert family.shapes(family.pictures(alone)) == [shape]
        assert alone.keys() >= set(family.picture_inputs)
        assert ("mm_token_type_ids" in alone) >= family.token_types
    assert {canonical_name(name) for name in model.state_dict()} == set(model.state_dict()), (
        "canonical names are those in memory"
    )


def test_both_layouts_are_one_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """As the hub has it, and as it is saved here: weights, positions, special tokens, template and picture sizes."""
    hub, saved = (load_model(folders[name], "cpu") for name in ("qwen2.5-vl", "saved"))
    assert layout_of(open_checkpoint(folders["qwen2.5-vl"]).tensors).name == OF_THE_HUB
    save_model(hub, load_processor(folders["qwen2.5-vl"]), tmp_path)
    again = load_model(tmp_path, "cpu")
    assert layout_of(open_checkpoint(tmp_path).tensors).name == IN_MEMORY
    for name, tensor in hub.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name])
        assert torch.equal(tensor, again.state_dict()[name])
    ropes = [model.config.text_config.rope_parameters for model in (hub, saved, again)]
    assert ropes[0]["mrope_section"] == ropes[1]["mrope_section"] == ropes[2]["mrope_section"] == [2, 1, 1]
    tokenizer = load_processor(tmp_path).tokenizer
    special = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "endoftext", "vision_start")]
    for model in (hub, saved, again):
        assert model.generation_config.eos_token_id == special[:2]
        assert model.config.vision_start_token_id == special[2]
    assert tokenizer.eos_token_id == special[0]


def test_a_saved_processor_keeps_its_limits_and_what_others_need(tmp_path: Path) -> None:
    """Without torchvision there are no videos here; elsewhere a processor of this class isn't loaded without their settings."""
    source = tmp_path / "source"
    write_lvlm(source, OF_THE_HUB)
    settings = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps(settings | {"min_pixels": 1600, "max_pixels": 6400}))
    (source / "video_preprocessor_config.json").write_text(json.dumps({"patch_size": 14, "fps": 3}))
    processor = load_processor(source)
    first, second = tmp_path / "first", tmp_path / "second"
    processor.save_pretrained(first)
    again = load_processor(first)
    again.save_pretrained(second)
    assert again.chat_template == processor.chat_template
    assert type(again.image_processor).__name__.endswith("Pil")
    for size in SIZES:
        assert QWEN2_5_VL.image_tokens(again, size) == QWEN2_5_VL.image_tokens(processor, size) <= 6400 / 28**2
    for folder in (first, second):
        stored = json.loads((folder / "processor_config.json").read_text())
        assert stored["processor_class"] == "Qwen2_5_VLProcessor"
        assert stored["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
        assert stored["image_processor"]["size"] == {"shortest_edge": 1600, "longest_edge": 6400}
        assert stored["video_processor"] == {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 14, "fps": 3}


def test_stand_ins_are_the_same_bytes_again(tmp_path: Path) -> None:
    for name, write in MODELS.items():
        if "Qwen2.5-VL" not in name:
            continue
        for place in ("one", "two"):
            write(tmp_path / place / name)
        files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one" / name).iterdir())
        assert len([f for f in files if f.suffix == ".safetensors"]) == (5 if name == "Qwen/Qwen2.5-VL-7B-Instruct" else 1)
        assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
        model = load_model(tmp_path / "one" / name, "cpu")
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == ("3B" in name)


def test_an_unknown_family_says_what_to_do() -> None:
    for ask in (lambda: family_of(object()), lambda: family_of_architecture("Idefics3ForConditionalGeneration", "here")):
        with pytest.raises(
            CheckError, match=r"of no family that is known here \(Llava.*needs a record in vlsafe/model/families"
        ):
            ask()


def test_pictures_that_become_alike_are_counted_once(folders: dict[str, Path]) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    processor = load_processor(folders["llava"])
    cropped, stretched = {"do_center_crop": True, "size": {"shortest_edge": 28}}, {"do_center_crop": False}
    for more, alike in ((cropped, True), (stretched, True), ({**stretched, "do_resize": False}, False)):
        settings: dict[str, Any] = {"size": {"height": 56, "width": 28}, "crop_size": {"height": 28, "width": 42}, **more}
        processor.image_processor = CLIPImageProcessorPil(**settings)
        sizes = [(28, 28), (140, 84)]
        shown = {LLAVA.shown_as(processor, size) for size in sizes}
        assert (len(shown) == 1) == alike
        for size in sizes:
            assert LLAVA.image_tokens(processor, size) == LLAVA.image_tokens(processor, LLAVA.shown_as(processor, size))
            seen = processor.image_processor([Image.new("RGB", size)], return_tensors="pt")["pixel_values"].shape[-2:]
            assert LLAVA.shown_as(processor, size) == tuple(seen)[::-1]
