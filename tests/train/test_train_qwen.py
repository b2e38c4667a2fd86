"""A second family trains as the first does: pictures keep their sizes, so a batch holds several numbers of image tokens, and
positions follow the pictures' rows and columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import train_qwen
import train_tiny as tiny
from test_train_steps import PARTS, answer_log_probs, bare_loop, close, train

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder, expanded
from vlsafe.data.mix import Unpaired
from vlsafe.errors import CheckError
from vlsafe.model.families import MODEL_INPUTS
from vlsafe.model.load import load_model, load_processor, save_model
from vlsafe.stage import Execution, StageContext
from vlsafe.train.checks import check_image_tokens
from vlsafe.train.engine import run_phases
from vlsafe.train.idle import AbsentPicture
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import part_of
from vlsafe.train.phase import Phase

SETTING = Optimization(steps=3, batch_size=4, learning_rate=2e-3, schedule="constant", weight_decay=0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_qwen.qwen(tmp_path_factory.mktemp("qwen"))


def test_supervised_training_equals_a_bare_loop(parent: Path, tmp_path: Path) -> None:
    rows = train_qwen.supervised(16, seed=1)
    model, ctx = train(parent, tmp_path, [Phase("one", "sft", lambda: rows, SETTING, PARTS, 3)])
    close(model, bare_loop(parent, rows, lambda m, batch: m(**batch).loss, 3, setting=SETTING))
    facts = ctx.facts["phases"]["one"]
    assert facts["image_features"] == 6
    assert facts["rows_with_pictures"] == sum(bool(row["images"]) for row in rows)
    assert all(count > 0 for count in facts["supervised_tokens_by_source"].values())


def test_what_the_model_is_given_is_what_its_processor_makes(parent: Path) -> None:
    """Ids, pictures and token types of a row, and so its logits; in a padded batch they are the same."""
    processor, model = load_processor(parent), load_model(parent, "cpu")
    rows = train_qwen.supervised(8, seed=2)
    encoder = Encoder(processor)
    collate = Collator(encoder, encoder.encode(rows).examples, rows)
    together = collate([{"example": i} for i in range(8)])
    with torch.no_grad():
        logits = model(**{k: v for k, v in together.items() if k in MODEL_INPUTS}).logits
    for i, row in enumerate(rows):
        messages = [*row["prompt"], *row["completion"]]
        text = processor.apply_chat_template(messages, tokenize=False).removesuffix("\n")  # which comes after the end
        whole = processor(text=[text], images=row["images"] or None, return_tensors="pt")
        alone = collate([{"example": i}])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"):
            assert (name in alone) == (name in whole)
            assert name not in whole or alone[name].equal(whole[name])
        with torch.no_grad():
            expected = model(**whole).logits[0]
        assert torch.allclose(logits[i, : len(expected)], expected, atol=1e-4)
    without = {k: v for k, v in together.items() if k in MODEL_INPUTS and k != "mm_token_type_ids"}
    with torch.no_grad():
        assert not torch.allclose(model(**without).logits, logits, atol=1e-2), "positions of pictures must be seen to act"


def test_preference_training_equals_the_formula(parent: Path, tmp_path: Path) -> None:
    rows, reference = train_qwen.preferences(12, seed=2), load_model(parent, "cpu")

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            before = answer_log_probs(reference, batch)
        chosen, rejected = (answer_log_probs(model, batch) - before).chunk(2)
        return -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)).mean()

    model, _ = train(parent, tmp_path, [Phase("one", "dpo", lambda: rows, SETTING, PARTS, 4, {"beta": 0.3})])
    close(model, bare_loop(parent, rows, loss, 4, setting=SETTING))


def test_unpaired_training_equals_the_formula(parent: Path, tmp_path: Path) -> None:
    rows, reference = Unpaired(train_qwen.preferences(12, seed=2)), load_model(parent, "cpu")
    seen: list[float] = []

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            before = answer_log_probs(reference, batch)
            divergence = answer_log_probs(model, batch, "KL_") - answer_log_probs(reference, batch, "KL_")
        seen.append(float(divergence.mean().clamp(min=0)))
        gain = 0.3 * (answer_log_probs(model, batch) - before - seen[-1])
        return torch.where(batch["label"], 1 - gain.sigmoid(), 1 - (-gain).sigmoid()).mean()

    model, _ = train(parent, tmp_path, [Phase("one", "kto", lambda: rows, SETTING, PARTS, 4, {"beta": 0.3})])
    close(model, bare_loop(parent, rows, loss, 4, setting=SETTING))
    assert max(seen) > 0, "the formula's divergence must be seen to act"


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_two_micro_batches_are_one_batch(parent: Path, tmp_path: Path, method: Any) -> None:
    rows = {"sft": train_qwen.supervised, "dpo": train_qwen.preferences}[method](16, seed=3)
    models = []
    for number, (micro, again) in enumerate(((None, False), (2, False), (2, True))):
        folder = tmp_path / str(number)
        execution = Execution(device="cpu", micro_batch_size=micro, gradient_checkpointing=again)
        ctx = StageContext(folder / "out", folder / "work", execution=execution)
        phase = Phase("one", method, lambda: rows, SETTING, PARTS, 5)
        models.append(run_phases(lambda: (load_model(parent, "cpu"), load_processor(parent)), [phase], ctx)[0])
    close(models[0], models[1])
    close(models[1], models[2])  # and computing activations again for the gradient changes nothing


@pytest.mark.parametrize(("method", "rows"), [("sft", train_qwen.supervised), ("dpo", train_qwen.preferences)])
def test_adapters_are_of_the_language_model_and_are_merged(parent: Path, tmp_path: Path, method: Any, rows: Any) -> None:
    """The tower has linear layers of the same names, which get none."""
    made, before = rows(12, seed=1), load_model(parent, "cpu").state_dict()
    phase = Phase("one", method, lambda: made, SETTING, PARTS, 3, lora=Lora(rank=2, alpha=4.0))
    model, ctx = train(parent, tmp_path, [phase])
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {part_of(name) for name in changed} == {"language_model", "projector"}
    assert ctx.facts["phases"]["one"]["adapted_layers"] == 2 * 7
    assert not any("visual.blocks" in name for name in changed)


def test_tied_embeddings_train_and_stay_tied(tmp_path: Path) -> None:
    tied = train_qwen.qwen(tmp_path / "tied", llm="qwen2_3b")
    rows = train_qwen.supervised(8, seed=1)
    model, _ = train(tied, tmp_path, [Phase("one", "sft", lambda: rows, SETTING, ("language_model",), 3)])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not torch.equal(model.lm_head.weight, load_model(tied, "cpu").lm_head.weight)
    save_model(model, load_processor(tied), tmp_path / "saved")
    again = load_model(tmp_path / "saved", "cpu")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_an_absent_picture_goes_through_tower_and_projector_and_changes_nothing(parent: Path) -> None:
    model, processor = load_model(parent, "cpu", train=True), load_processor(parent)
    rows = train_qwen.supervised(8, seed=1)
    encoder = Encoder(processor)
    collate = Collator(encoder, encoder.encode(rows).examples, rows)
    text = next(i for i, row in enumerate(rows) if not row["images"])
    batch = collate([{"example": text, "pictured": True}])
    inputs = {k: v for k, v in batch.items() if k in MODEL_INPUTS}
    plain = model(**inputs).logits
    absent = AbsentPicture(model)
    absent.picture = batch["absent_picture"]
    logits = model(**inputs).logits
    absent.remove()
    assert torch.equal(logits, plain)
    logits.sum().backward()
    unseen = [n for n, p in model.named_parameters() if part_of(n) in ("projector", "vision_tower") and p.grad is None]
    assert not unseen
    assert all(not p.grad.any() for n, p in model.named_parameters() if "visual" in n)


def test_a_processor_that_is_not_the_towers_is_refused(parent: Path, tmp_path: Path) -> None:
    rows = train_qwen.supervised(8, seed=1, pictures=1.0)
    phase = Phase("one", "sft", lambda: rows, SETTING, PARTS, 3)

    def run(change: Any) -> None:
        model, processor = load_model(parent, "cpu"), load_processor(parent)
        change(model, processor)
        ctx = StageContext(tmp_path / "out", tmp_path / "work", execution=Execution(device="cpu"))
        run_phases(lambda: (model, processor), [phase], ctx)

    def merge_more(model: Any, processor: Any) -> None:
        processor.image_processor.merge_size = 1

    with pytest.raises(
        CheckError,
        match=r"row \d of source 'pictures' has 4 image tokens, but the model makes 1 features .* 28 × 28 pixels.*merge_size",
    ):
        run(merge_more)

    def other_token(model: Any, processor: Any) -> None:
        model.config.image_token_id = 7

    with pytest.raises(CheckError, match=r"the processor's image token has id \d+, the model expects 7"):
        run(other_token)


def test_a_prompt_that_was_cut_into_its_image_tokens_is_refused(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, encoder = load_model(parent, "cpu"), train_qwen.supervised(8, seed=1), Encoder(load_processor(parent))
    encoded = encoder.encode(rows)
    assert check_image_tokens(model, encoder, encoded, rows, "here") == 6
    cut = next(e for e in encoded.examples if e.image_tokens == 4)

    def one_less(ids: list[int], places: Any) -> list[int]:
        return expanded(ids, [(place, count - (count == 4)) for place, count in places])

    monkeypatch.setattr("vlsafe.data.encode.expanded", one_less)
    with pytest.raises(
        CheckError,
        match=rf"here: row {cut.row} of source 'pictures' has 3 image tokens, and its 1 pictures need 4: nothing may cut",
    ):
        check_image_tokens(model, encoder, encoder.encode(rows), rows, "here")


def test_a_model_of_another_family_is_refused(parent: Path, tmp_path: Path) -> None:
    other, rows, encoder = load_model(tiny.llava(tmp_path), "cpu"), train_qwen.supervised(4, 1), Encoder(load_processor(parent))
    other.config.image_token_id = encoder.image_id
    with pytest.raises(CheckError, match=r"here: the model is of the family llava, its processor of qwen2\.5-vl"):
        check_image_tokens(other, encoder, encoder.encode(rows), rows, "here")


def test_an_answer_that_spells_out_the_image_token_is_refused(parent: Path, tmp_path: Path) -> None:
    rows = train_qwen.supervised(4, seed=1)
    rows[2]["completion"][0]["content"][0]["text"] += " <|image_pad|>"
    with pytest.raises(CheckError, match=r"2: its text holds the model's sign for a picture, <\|image_pad\|>"):
        train(parent, tmp_path, [Phase("one", "sft", lambda: rows, SETTING, PARTS, 3)])


def test_long_rows_are_left_out_whole(parent: Path) -> None:
    """Cutting one could leave fewer image tokens than features."""
    rows, encoder = train_qwen.supervised(8, seed=1, pictures=1.0), Encoder(load_processor(parent))
    lengths = [len(e.prompt) + len(e.completions[0]) for e in encoder.encode(rows).examples]
    encoder.limit = sorted(lengths)[3]
    encoded = encoder.encode(rows)
    assert sum(encoded.dropped.values()) == sum(length > encoder.limit for length in lengths) > 0
    for example in encoded.examples:
        assert example.prompt.count(encoder.image_id) == example.image_tokens > 0
