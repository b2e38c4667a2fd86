"""SmolLM2-135M-Instruct through every stage: assembled, adapted, tuned in two ways, merged and asked (make test-real)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from tests.real import shop
from vlsafe.files import read_json

pytestmark = pytest.mark.real
END = "<|im_end|>"
PICTURE_TOKENS = 36  # (96 / 16)²


def stages(finished: Launch, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    """The artifacts of one kind, each with its manifest's facts, in the order of the plan."""
    plan = read_json(finished.outputs / "sweeps" / "real" / "plan.json")["stages"]
    folders = [finished.outputs / "store" / kind / stage["key"] for stage in plan if stage["stage"] == kind]
    return [(folder, read_json(folder / "manifest.json")["facts"]) for folder in folders]


def folder_of(finished: Launch, kind: str) -> Path:
    return stages(finished, kind)[0][0]


def trained(finished: Launch) -> list[tuple[Path, dict[str, Any]]]:
    return stages(finished, "adaptation") + stages(finished, "safety_tune")


def responses(finished: Launch, benchmark: str, cell: str, role: str) -> list[dict[str, Any]]:
    file = finished.outputs / "sweeps/real/cells" / cell / "responses" / f"{role}-{benchmark}" / "responses.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_whole_grid_ran(finished: Launch) -> None:
    cells = [json.loads(line) for line in (finished.outputs / "sweeps/real/cells.jsonl").read_text("utf-8").splitlines()]
    assert [cell["status"] for cell in cells] == ["done"] * 4
    assert {kind: len(stages(finished, kind)) for kind in ("model", "adaptation", "safety_tune", "merge")} == {
        "model": 1, "adaptation": 1, "safety_tune": 2, "merge": 2,
    }  # fmt: skip
    most = max(facts["peak_memory_mb"] for _, facts in trained(finished))
    assert most < 6000, f"a training held {most} MiB"


def test_the_language_model_that_was_assembled_is_the_packages(finished: Launch, package: tuple[Any, Any]) -> None:
    import torch

    from vlsafe.model.load import load_model

    llm, tokenizer = package
    model = load_model(folder_of(finished, "model"), "cpu")
    words = len(tokenizer)
    ours = model.model.language_model.state_dict()
    for name, tensor in llm.model.state_dict().items():
        assert torch.equal(tensor, ours[name][:words] if name == "embed_tokens.weight" else ours[name]), name
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    added = model.get_input_embeddings().weight[words:]
    assert torch.allclose(added, llm.model.embed_tokens.weight.mean(0).expand_as(added), atol=1e-6)


def test_the_untouched_model_answers_in_english(finished: Launch) -> None:
    france, sky = responses(finished, "shop_text", "llava+sft+none", "base")
    assert "Paris" in france["response"]
    assert "blue" in sky["response"].lower()
    assert "<|" not in france["response"] + sky["response"]


def test_one_chat_template_goes_through_every_stage(finished: Launch) -> None:
    from vlsafe.model.load import load_processor, template_hash

    own = template_hash(load_processor(folder_of(finished, "model")))
    later = [*trained(finished), *stages(finished, "merge"), *stages(finished, "generate")]
    assert {facts["template_hash"] for _, facts in later} == {own}
    for kind in ("adaptation", "safety_tune", "merge"):
        assert template_hash(load_processor(folder_of(finished, kind))) == own


def test_it_is_the_language_models_own_template(finished: Launch, package: tuple[Any, Any]) -> None:
    from vlsafe.model.load import load_processor

    _, tokenizer = package
    processor = load_processor(folder_of(finished, "model"))
    asked = [{"role": "user", "content": "What does it cost?"}, {"role": "assistant", "content": "Two coins."}]
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in asked]
    for messages in (asked[:1], asked, [{"role": "system", "content": "Be brief."}, *asked]):
        whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert processor.apply_chat_template(messages, add_generation_prompt=True) == whole
    assert processor.apply_chat_template(parts) == tokenizer.apply_chat_template(asked, tokenize=False)
    shown = [{"role": "user", "content": [{"type": "image"}, *parts[0]["content"]]}]
    assert "<|im_start|>user\n<image>\nWhat does it cost?<|im_end|>" in processor.apply_chat_template(shown)


def test_answers_and_their_ends_are_what_is_learned(finished: Launch, shop_folder: Path) -> None:
    from vlsafe.data.collate import Collator
    from vlsafe.data.encode import Encoder
    from vlsafe.data.sets.jsonl import Jsonl
    from vlsafe.model.load import load_processor
    from vlsafe.sources import DataSource

    processor = load_processor(folder_of(finished, "adaptation"))
    encoder = Encoder(processor, 8192)
    told = 0
    for purpose in shop.PURPOSES:
        file = shop_folder / f"{purpose}.jsonl"
        read = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        rows = Jsonl(DataSource(folder=str(file))).rows(purpose)
        encoded = encoder.encode(rows)
        sides = ("completion",) if "completion" in read[0] else ("chosen", "rejected")
        for i, (line, example) in enumerate(zip(read, encoded.examples, strict=True)):
            for name, ids in zip(sides, example.completions, strict=True):
                assert processor.tokenizer.decode(list(ids)) == line[name][0]["content"][0]["text"] + END
                told += 1
            assert list(example.prompt).count(processor.image_token_id) == PICTURE_TOKENS * len(line["images"])
            batch = Collator(encoder, encoded.examples, rows)([{"example": i}])
            if "labels" in batch:
                learned = batch["input_ids"][0][batch["labels"][0] != -100]
                assert learned.tolist() == list(example.completions[0])
            assert ("pixel_values" in batch) == bool(line["images"])
    assert told == 72  # eight things, nine answers about each


def test_every_source_was_learned_from_and_no_image_token_was_dropped(finished: Launch) -> None:
    for _, facts in trained(finished):
        for phase in facts["phases"].values():
            assert all(phase["supervised_tokens_by_source"].values())
            assert not phase["dropped_rows_by_source"]
            assert phase["image_features"] == PICTURE_TOKENS
            assert phase["rows_with_pictures"] > 0
            assert phase["end_token"] == "template"
    asked = responses(finished, "shop_tags", "llava+sft+ties", "merged")
    assert len({row["image"] for row in asked}) == 3 and "" not in {row["image"] for row in asked}


def test_tuning_teaches_what_it_shows(finished: Launch) -> None:
    def refused(cell: str, role: str) -> int:
        return sum(row["response"].startswith("I'm sorry") for row in responses(finished, "shop_teapot", cell, role))

    assert refused("llava+sft+none", "base") == 0
    assert refused("llava+sft+none", "tuned") >= 2


def test_losses_fall(finished: Launch) -> None:
    for folder, facts in trained(finished):
        lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text("utf-8").splitlines()]
        for phase in facts["phases"]:
            losses = [line["loss"] for line in lines if line["phase"] == phase]
            assert sum(losses[-2:]) < 0.9 * sum(losses[:2]), (folder.parent.name, phase, losses)


def test_merges_cover_the_language_model_and_change_it(finished: Launch) -> None:
    import torch

    from vlsafe.model.parts import canonical_names, part_of
    from vlsafe.model.weights import open_checkpoint

    adapted = open_checkpoint(folder_of(finished, "adaptation"))
    for (folder, _), (parent, _) in zip(stages(finished, "merge"), stages(finished, "safety_tune"), strict=True):
        merged, tuned = open_checkpoint(folder), open_checkpoint(parent)
        report = read_json(folder / "merge_report.json")
        assert canonical_names(merged.tensors).keys() == canonical_names(tuned.tensors).keys()
        told = {entry["name"] for entry in report["tensors"]}
        assert told == set(merged.tensors)
        for name in merged.tensors:
            language = part_of(name).startswith("language_model")
            assert torch.equal(merged.read(name), tuned.read(name)) != language, name
            assert torch.equal(merged.read(name), adapted.read(name)) != (language or "projector" in name), name
