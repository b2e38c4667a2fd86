"""Pictures keep their sizes in the second family, so prompts of a batch hold different numbers of image tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import Words
from tests.eval.test_generate import ENGINE, Folder, run
from vlsafe.errors import CheckError
from vlsafe.eval.base import Item
from vlsafe.stand_in.qwen import write_lvlm

SIZES = ((28, 28), (56, 84), (140, 30), (60, 60), (200, 200))  # 1, 6, 5, 4 and, at the most, 16 image tokens


@dataclass(frozen=True)
class Sized(Words):
    """Every second item has a picture, of one size after the other."""

    def _item(self, i: int) -> Item:
        item = super()._item(i)
        return replace(item, image=(lambda: sized(i)) if item.image else None)


def sized(i: int) -> Any:
    import numpy as np
    from PIL import Image

    width, height = SIZES[i // 2 % len(SIZES)]
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return write_lvlm(tmp_path_factory.mktemp("qwen"), dtype="float32", spread=0.5)


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("plain"), model, benchmark=Sized())


@pytest.mark.parametrize("size", [1, 5, 24])
def test_any_batch_size_gives_the_same_answers(plain: Any, model: Path, folder: Folder, size: int) -> None:
    rows, facts = run(folder("out"), model, replace(ENGINE, batch_size=size), Sized())
    assert rows == plain[0]
    assert facts["probe"]["items"] == 4


def test_answers_differ_between_prompts_and_pictures(plain: Any) -> None:
    assert len({row["response"] for row in plain[0]}) > 8
    assert len({row["image"] for row in plain[0]}) == 13


def test_answers_are_the_argmax_of_whole_forward_passes_without_cache_or_padding(plain: Any, model: Path) -> None:
    import torch

    from vlsafe.model.load import load_model, load_processor

    lvlm, processor = load_model(model, "cpu"), load_processor(model)
    ends = set(lvlm.generation_config.eos_token_id)
    for item, row in list(zip(Sized().items(None), plain[0], strict=True))[:8]:
        parts = [{"type": "image"}] * bool(item.image) + [{"type": "text", "text": item.prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=[item.image()] if item.image else None, return_tensors="pt")
        new: list[int] = []
        while len(new) < ENGINE.max_new_tokens:
            with torch.no_grad():
                token = int(lvlm(**inputs).logits[0, -1].argmax())
            if token in ends:
                break
            new.append(token)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
            for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
        assert processor.tokenizer.decode(new, skip_special_tokens=True).strip() == row["response"]


def test_text_prompts_get_a_blank_picture_where_asked_for(plain: Any, model: Path, folder: Folder) -> None:
    rows, _ = run(folder("out"), model, replace(ENGINE, text_image="blank_image"), Sized(), limit=4)
    assert all(row["image"] for row in rows)
    assert [row["image"] for row in rows[1::2]] == [row["image"] for row in plain[0][1:4:2]]
    assert [row["response"] for row in rows[::2]] != [row["response"] for row in plain[0][:4:2]]


def test_wrong_image_token_counts_stop_the_stage(model: Path, folder: Folder) -> None:
    other = folder("other")
    shutil.copytree(model, other, dirs_exist_ok=True)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps(settings | {"merge_size": 1}))
    with pytest.raises(CheckError, match=r"item item-\d+: \d+ image tokens for \d+ image features; .*merge_size"):
        run(folder("out"), other, benchmark=Sized())


def test_a_processor_of_another_family_stops_the_stage(model: Path, folder: Folder, tmp_path: Path) -> None:
    from tests.eval import tiny

    llava, other = tiny.build(tmp_path / "llava"), folder("other")
    shutil.copytree(llava, other, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(model / name, other / name)
    with pytest.raises(
        CheckError, match=r"Qwen2_5_VLForConditionalGeneration and a LlavaProcessor: they don't belong together"
    ):
        run(folder("out"), other)
