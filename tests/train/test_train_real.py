"""Data sets in the layout of the hub, through a tiny LLaVA: each method trains, and no picture that fails passes silently."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny
from PIL import Image

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.data.pictures import Picture
from vlsafe.data.rows import TrainingData
from vlsafe.errors import CheckError
from vlsafe.model.load import load_model, load_processor
from vlsafe.registry import make
from vlsafe.sources import placed
from vlsafe.stage import Execution, StageContext
from vlsafe.stand_in.sets import SETS, write_all

STEPS = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
LLAVA = {"name": "llava", "projector": STEPS, "instruct": STEPS}
TUNINGS = {
    "sft": {"name": "sft", "optimization": STEPS, "helpful": 0.25},
    "dpo": {"name": "dpo", "optimization": STEPS, "helpful": 0.25, "beta": 0.1},
    "kto": {"name": "kto", "optimization": STEPS, "helpful": 0.25, "beta": 0.1},
}
MIXTURE = {
    "name": "mixture",
    "projector": {"captions": {"dataset": {"name": "llava_pretrain"}}},
    "instruct": {"instructions": {"dataset": {"name": "llava_instruct"}, "pad_to_square": True}},
    "safety": {"vlguard": {"dataset": {"name": "vlguard"}}, "text": {"dataset": {"name": "safety_tuned_llamas"}, "rows": 6}},
    "preference": {
        "spa_vl": {"dataset": {"name": "spa_vl"}, "weight": 1},
        "text": {"dataset": {"name": "safe_rlhf"}, "weight": 1},
    },
    "helpful_preference": {"text": {"dataset": {"name": "safe_rlhf"}}},
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny.llava(tmp_path_factory.mktemp("parent"), resize=True)


def train(parent: Path, folder: Path, component: Any, data: TrainingData, **how: Any) -> dict[str, Any]:
    ctx = StageContext(folder / "out", folder / "work", {"model": parent}, Execution(device="cpu"))
    component.run(data, ctx, **how)
    load_model(ctx.out, "cpu")
    phases: dict[str, Any] = ctx.facts["phases"]
    return phases


def test_adaptation_learns_from_llavas_sets(parent: Path, mirror: Path, tmp_path: Path) -> None:
    phases = train(parent, tmp_path, make("adaptation", LLAVA), placed(make("data", MIXTURE), str(mirror)))
    assert phases["projector"]["rows_by_source"] == {"captions": 8}
    assert phases["instruct"]["rows_by_source"] == {"instructions": 8}
    assert phases["instruct"]["data_sets"] == {"instruct": {"instructions": {"rows": 8, "of": 36, "passes": 0.222}}}
    assert 0 < phases["instruct"]["rows_with_pictures"] < 8
    assert phases["instruct"]["broken_rows_by_source"] == {}


@pytest.mark.parametrize("name", TUNINGS)
def test_each_tuning_learns_from_its_sets(parent: Path, mirror: Path, tmp_path: Path, name: str) -> None:
    phases = train(parent, tmp_path, make("safety_tune", TUNINGS[name]), placed(make("data", MIXTURE), str(mirror)))
    rows = phases[name]["rows_by_source"]
    assert set(rows) == {"instructions", "vlguard", "text"} if name == "sft" else {"spa_vl", "text"}
    assert sum(rows.values()) == 8
    purposes = {"safety", "instruct"} if name == "sft" else {"preference", "helpful_preference"}
    assert set(phases[name]["data_sets"]) == purposes


def test_tuning_before_adaptation_takes_the_text_rows(parent: Path, mirror: Path, tmp_path: Path) -> None:
    phases = train(
        parent, tmp_path, make("safety_tune", {**TUNINGS["dpo"], "order": "before", "trainable": ["language_model"]}),
        placed(make("data", MIXTURE), str(mirror)), text_only=True,
    )  # fmt: skip
    assert phases["dpo"]["rows_by_source"] == {"text": 8}


def test_mixed_training_shows_safety_rows_among_the_instructions(parent: Path, mirror: Path, tmp_path: Path) -> None:
    phases = train(
        parent, tmp_path, make("safety_tune", {**TUNINGS["sft"], "order": "joint"}),
        placed(make("data", MIXTURE), str(mirror)), adaptation=make("adaptation", LLAVA),
    )  # fmt: skip
    assert phases["instruct"]["rows_by_source"] == {"instructions": 10, "vlguard": 5, "text": 1}


def damaged(mirror: Path, folder: Path, how: dict[int, str]) -> tuple[Path, dict[str, Any]]:
    """A copy of LLaVA-Instruct in which some rows' pictures are damaged, and the settings that read it."""
    root = folder / "set"
    SETS["liuhaotian/LLaVA-Instruct-150K"](root)
    listed = json.loads((root / "llava_v1_5_mix665k.json").read_text())
    for row, damage in how.items():
        picture = root / "images" / listed[row]["image"]
        if damage == "missing":
            picture.unlink()
        elif damage == "cut":  # the header is fine
            noise = Image.effect_noise((200, 200), 90).convert("RGB")
            noise.save(picture, "JPEG")
            picture.write_bytes(picture.read_bytes()[:6000])
        else:
            picture.write_bytes(b"not a picture")
    share = {"dataset": {"name": "llava_instruct", "source": {"folder": str(root)}}}
    return root, {**MIXTURE, "instruct": {"instructions": share}}


def test_rows_without_their_picture_are_left_out_counted_and_named(parent: Path, mirror: Path, tmp_path: Path) -> None:
    _, settings = damaged(mirror, tmp_path, {0: "missing", 2: "wrong"})
    long = {**LLAVA, "instruct": {**STEPS, "steps": 9}}
    data = placed(make("data", {**settings, "most_broken": 0.1}), str(mirror))
    facts = train(parent, tmp_path, make("adaptation", long), data)["instruct"]
    assert facts["rows_by_source"] == {"instructions": 34}
    found = facts["broken_rows_by_source"]["instructions"]
    assert (found["left_out"], found["unlearned"]) == (2, 0)
    assert sorted(found["rows"]) == [
        "000000000000: coco/train2017/000000000000.jpg: no such file",
        "000000000002: ocr_vqa/images/000000000002.jpg: is no picture that can be read (JPEG, PNG, WEBP, GIF, BMP, TIFF)",
    ]


def test_more_of_them_than_allowed_stop_the_run(parent: Path, mirror: Path, tmp_path: Path) -> None:
    _, settings = damaged(mirror, tmp_path, {0: "missing", 2: "wrong"})
    data = placed(make("data", {**settings, "most_broken": 0.05}), str(mirror))
    with pytest.raises(CheckError, match=r"2 of 36 rows can't be shown to the model, more than data.most_broken=0.05"):
        train(parent, tmp_path, make("adaptation", {**LLAVA, "instruct": {**STEPS, "steps": 9}}), data)


def test_a_picture_that_only_decoding_finds_broken_teaches_nothing_and_is_named(
    parent: Path, mirror: Path, tmp_path: Path
) -> None:
    _, settings = damaged(mirror, tmp_path, {8: "cut"})
    long = {**LLAVA, "instruct": {**STEPS, "steps": 9}}
    data = placed(make("data", {**settings, "most_broken": 0.1}), str(mirror))
    facts = train(parent, tmp_path, make("adaptation", long), data)["instruct"]
    found = facts["broken_rows_by_source"]["instructions"]
    assert (found["left_out"], found["unlearned"]) == (0, 1)
    assert found["rows"][0].startswith("000000000008: ocr_vqa/images/000000000008.jpg: is no picture that can be read (")
    strict = placed(make("data", {**settings, "most_broken": 0.01}), str(mirror))
    with pytest.raises(CheckError, match=r"1 of 36 rows can't be shown to the model, more than data.most_broken=0.01"):
        train(parent, tmp_path / "strict", make("adaptation", long), strict)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_such_a_row_has_no_supervised_token_and_leaves_the_others_as_they_are(parent: Path, tmp_path: Path, kind: str) -> None:
    rows: list[Any] = tiny.supervised(4, 1, pictures=1.0) if kind == "sft" else tiny.preferences(4, 1, pictures=1.0)
    content = bytearray()
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "a.jpg", "JPEG")
    content += (tmp_path / "a.jpg").read_bytes()
    broken = [
        {**row, "images": [Picture("b", data=bytes(content[:2000]))] if i == 2 else row["images"]} for i, row in enumerate(rows)
    ]
    whole = [{**row, "images": [Picture("b", data=bytes(content))] if i == 2 else row["images"]} for i, row in enumerate(rows)]
    encoder = Encoder(load_processor(parent))

    def batch(some: Sequence[Any]) -> Any:
        collate = Collator(encoder, encoder.encode(some).examples, some)
        return collate([{"example": i} for i in range(4)]), collate

    (seen, collate), (expected, _) = batch(broken), batch(whole)
    mask = "labels" if kind == "sft" else "completion_mask"
    nothing = -100 if kind == "sft" else 0
    assert list(collate.broken) == [2]
    assert seen["input_ids"].equal(expected["input_ids"])
    for i in range(len(seen[mask])):
        assert (seen[mask][i] == nothing).all() if i % 4 == 2 else seen[mask][i].equal(expected[mask][i])
        assert seen["pixel_values"][i].equal(expected["pixel_values"][i]) == (i % 4 != 2)


def test_text_that_holds_the_models_sign_for_a_picture_is_left_out_and_named(parent: Path) -> None:
    rows = tiny.supervised(300, 1, pictures=0.0)
    rows[7] = {**rows[7], "id": "seven", "completion": [tiny.message("assistant", "w1 <image> w2")]}
    encoded = Encoder(load_processor(parent)).encode(rows)
    assert encoded.broken == {"text": 1}
    assert encoded.named == {"text": ["seven: its text holds the model's sign for a picture, <image>"]}


def test_many_pictures_take_no_memory_until_they_are_shown(parent: Path, mirror: Path) -> None:
    data: Any = placed(make("data", MIXTURE), str(mirror))
    rows = data.supervised("instruct", 300, 0)
    encoder = Encoder(load_processor(parent))
    examples = encoder.encode(rows).examples
    assert len(examples) == 300
    assert examples.kept.bytes < 300 * 100
    assert len(encoder._tokens_of_size) <= 2
    assert all(isinstance(p, Picture) and p.data is None for e in examples for p in examples.kept.of(e.row) or ())


def test_padding_to_square_is_what_the_model_sees(parent: Path, mirror: Path) -> None:
    encoder = Encoder(load_processor(parent))
    for square in (True, False):
        share = {**MIXTURE["instruct"]["instructions"], "pad_to_square": square}  # type: ignore[index]
        data: Any = placed(make("data", {**MIXTURE, "instruct": {"i": share}}), str(mirror))
        rows = [row for row in data.supervised("instruct", 8, 0) if row["images"]]
        batch = Collator(encoder, encoder.encode(rows).examples, rows)([{"example": 0}])
        corner = batch["pixel_values"][0, :, 0, 0]
        assert (corner.abs().max() < 0.02) == square  # the mean colour is what the processor takes for zero


def test_the_filter_names_what_it_removes_by_the_data_sets_own_ids(parent: Path, mirror: Path, tmp_path: Path) -> None:
    from vlsafe import registry
    from vlsafe.eval.base import Judge
    from vlsafe.train.filter import Kept, facts

    class Blue(Judge):
        component_name, harm_version = "blue", 1

    data: Any = placed(make("data", MIXTURE), str(mirror))
    rows = data.supervised("projector", 12, 0)
    harmful = ["blue" in row["completion"][0]["content"][0]["text"] for row in rows]
    told = facts(Blue(), "projector", rows, harmful)["projector"]
    assert told["removed_ids"] == [f"captions/{row['id']}" for row, bad in zip(rows, harmful, strict=True) if bad]
    assert told["rows_removed"] == sum(harmful) > 0
    kept = Kept(rows, [0, 1], {"filter": {"projector": told}})
    assert set(kept.facts) == {"filter", "data_sets"} and kept.most_broken == data.most_broken
    assert registry.names("judge")
