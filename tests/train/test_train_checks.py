"""Each way in which training would silently compute something else, planted and caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny

from vlsafe.errors import CheckError
from vlsafe.model.load import load_model, load_processor
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import run_phases
from vlsafe.train.lora import Lora, adapted_layers, inject, merge
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import check_changes, check_trainable, fingerprints, freeze_all_but
from vlsafe.train.phase import Phase

SETTING = Optimization(steps=4, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny.llava(tmp_path_factory.mktemp("parent"))


def attempt(
    parent: Path,
    folder: Path,
    rows: list[Any],
    parts: Any = ("language_model",),
    setting: Optimization = SETTING,
    change: Any = None,
    lora: Lora | None = None,
) -> None:
    def load() -> tuple[Any, Any]:
        model, processor = load_model(parent, "cpu"), load_processor(parent)
        if change:
            change(model, processor)
        return model, processor

    ctx = StageContext(folder / "out", folder / "work", execution=Execution(device="cpu", checkpoint_seconds=0.0))
    run_phases(load, [Phase("phase", "sft", lambda: rows, setting, parts, 0, lora=lora)], ctx)


def test_a_source_without_supervised_tokens(parent: Path, tmp_path: Path) -> None:
    long = tiny.supervised(2, seed=1, pictures=0.0, words=(60, 70))
    rows = tiny.supervised(8, seed=2) + [{**row, "source": "essays"} for row in long]
    with pytest.raises(CheckError, match=r"phase: source 'essays' has no supervised token \(2 rows were too long"):
        attempt(parent, tmp_path, rows)
    with pytest.raises(CheckError, match="no rows to train on"):
        attempt(parent, tmp_path, long)


@pytest.mark.parametrize(
    ("written", "left_out"),
    [
        ("{% if m['role'] == 'user' %}{{ m['content'][-1]['text'] }}{% endif %}", "answer"),
        ("{{ m['content'] | length }}", "prompt"),
    ],
    ids=["masks every answer", "writes no text"],
)
def test_a_template_that_leaves_out_what_is_said(parent: Path, tmp_path: Path, written: str, left_out: str) -> None:
    def change(model: Any, processor: Any) -> None:
        processor.chat_template = (
            "{% for m in messages %}{{ m['role'] }} : " + written + " {% endfor %}"
            "{% if add_generation_prompt %}assistant :{% endif %}"
        )

    with pytest.raises(CheckError, match=f"phase: the chat template leaves out the {left_out} of row 0 of source 'text'"):
        attempt(parent, tmp_path, tiny.supervised(8, seed=1, pictures=0.0), change=change)


def test_what_is_said_around_a_picture_is_not_missed(parent: Path, tmp_path: Path) -> None:
    rows = tiny.supervised(8, seed=1, pictures=1.0)
    for row in rows:
        row["prompt"][0]["content"].insert(0, {"type": "text", "text": "w1 w2"})
    attempt(parent, tmp_path, rows)


def test_image_tokens_that_are_not_the_features(parent: Path, tmp_path: Path) -> None:
    def change(model: Any, processor: Any) -> None:
        processor.num_additional_image_tokens = 0  # the tower's class token is then taken off twice

    with pytest.raises(CheckError, match="15 image tokens, but the model makes 16 features"):
        attempt(parent, tmp_path, tiny.supervised(8, seed=1, pictures=0.8), change=change)


def test_an_image_token_that_the_model_does_not_know(parent: Path, tmp_path: Path) -> None:
    def change(model: Any, processor: Any) -> None:
        model.config.image_token_id = 3

    with pytest.raises(CheckError, match="image token has id 4, the model expects 3"):
        attempt(parent, tmp_path, tiny.supervised(8, seed=1, pictures=0.8), change=change)


def test_ids_beyond_the_embeddings(parent: Path, tmp_path: Path) -> None:
    def change(model: Any, processor: Any) -> None:
        model.resize_token_embeddings(20)

    with pytest.raises(CheckError, match="beyond the model's 20 embeddings"):
        attempt(parent, tmp_path, tiny.supervised(8, seed=1), change=change)


def test_a_part_that_the_model_has_not(tmp_path: Path) -> None:
    plain = tiny.language_model(tmp_path / "model")
    with pytest.raises(CheckError, match="trainable part 'projector' has no parameters in LlamaForCausalLM"):
        attempt(plain, tmp_path, tiny.supervised(8, seed=1, pictures=0.0), parts=("language_model", "projector"))


def test_a_part_that_nothing_trains(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="nothing in 'projector' changed"):
        attempt(parent, tmp_path, tiny.supervised(8, seed=1, pictures=0.0), parts=("language_model", "projector"))


def test_a_frozen_part_that_changes(parent: Path) -> None:
    model = load_model(parent, "cpu")
    before = fingerprints(model)
    with torch.no_grad():
        model.lm_head.weight.view(-1)[5] += 1e-3
        next(model.model.vision_tower.parameters()).view(-1)[0] += 1e-7
    with pytest.raises(CheckError, match=r"vision_tower.*changed, although vision_tower is frozen"):
        check_changes(before, model, ("language_model",), "phase")


def test_weights_that_are_no_numbers(parent: Path) -> None:
    model = load_model(parent, "cpu")
    before = fingerprints(model)
    with torch.no_grad():
        model.lm_head.weight.view(-1)[5] = float("nan")
    with pytest.raises(CheckError, match=r"lm_head.weight holds values that are no numbers"):
        check_changes(before, model, ("language_model",), "phase")


def test_an_optimiser_that_holds_other_parameters(parent: Path) -> None:
    model = load_model(parent, "cpu")
    freeze_all_but(model, ("projector",), "phase")
    parameters = [p for p in model.parameters() if p.requires_grad]
    check_trainable(model, torch.optim.AdamW(parameters), ("projector",), "phase")
    with pytest.raises(CheckError, match=r"multi_modal_projector\.linear_1\.weight is not trained"):
        check_trainable(model, torch.optim.AdamW(parameters[1:]), ("projector",), "phase")
    with pytest.raises(CheckError, match=r"lm_head.weight would be trained, but the trainable parts are projector"):
        check_trainable(model, torch.optim.AdamW([*parameters, model.lm_head.weight]), ("projector",), "phase")


def test_a_loss_that_is_no_number_ends_loudly_and_leaves_no_checkpoint_of_it(parent: Path, tmp_path: Path) -> None:
    wild = Optimization(steps=30, batch_size=4, learning_rate=1e30)
    with pytest.raises(CheckError, match=r"phase: the (loss|gradient norm) of step \d+ is (nan|inf): lower learning_rate"):
        attempt(parent, tmp_path, tiny.supervised(120, seed=1), setting=wild)
    log = (tmp_path / "work" / "0-phase" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["loss"] < float("inf") for line in log)
    kept = list((tmp_path / "work" / "0-phase").glob("checkpoint-*/complete.json"))
    assert all(int(k.parent.name.rpartition("-")[2]) <= len(log) for k in kept)


LORA = Lora(rank=2, alpha=4.0)


def test_a_target_that_is_no_layer(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"LoRA's target 'query' is no linear layer .* they have: down_proj, .*, q_proj, "):
        attempt(parent, tmp_path, tiny.supervised(8, seed=1), lora=Lora(rank=2, alpha=4.0, targets=("q_proj", "query")))


def test_a_model_without_layers_to_adapt(parent: Path) -> None:
    with pytest.raises(CheckError, match="LlavaMultiModalProjector has no linear layers in its blocks"):
        inject(only_the_projector(parent), LORA, 0, "phase")


def only_the_projector(parent: Path) -> Any:
    whole = load_model(parent, "cpu")

    class LlavaMultiModalProjector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Module()
            self.model.multi_modal_projector = whole.model.multi_modal_projector

    return LlavaMultiModalProjector()


def adapted(parent: Path) -> tuple[Any, tuple[str, ...], dict[str, Any]]:
    """A model with adapters as training leaves them, their layers, and a batch."""
    model = load_model(parent, "cpu")
    names = inject(model, LORA, 0, "phase")
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(5, 25).view(2, 10)
    return model, names, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_merged_adapters_compute_what_they_did(parent: Path) -> None:
    model, names, batch = adapted(parent)
    before, plain = model.eval()(**batch).logits, load_model(parent, "cpu")
    merge(model, names, batch, "phase")
    after = model(**batch).logits
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(after, plain(**batch).logits, atol=1e-3)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not hasattr(model, "peft_config")
    assert len(names) == 14
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name.removesuffix(".weight") not in names), name


def test_an_adapter_that_was_not_trained(parent: Path) -> None:
    model, names, batch = adapted(parent)
    with torch.no_grad():
        model.get_submodule(names[3]).lora_B["default"].weight.zero_()
    with pytest.raises(CheckError, match=rf"phase: 1 of 14 adapters were not trained: B is still zero in {names[3]}"):
        merge(model, names, batch, "phase")


def test_adapters_that_are_gone_or_not_applied_or_lost_in_merging(parent: Path) -> None:
    model, names, batch = adapted(parent)
    model.set_submodule(names[0], model.get_submodule(names[0]).get_base_layer())
    with pytest.raises(CheckError, match="14 layers had an adapter and 13 have one now"):
        merge(model, names, batch, "phase")
    model, names, batch = adapted(parent)
    for layer in adapted_layers(model).values():
        layer.scaling["default"] = 0.0
    with pytest.raises(CheckError, match="computes the same without them"):
        merge(model, names, batch, "phase")
    model, names, batch = adapted(parent)
    model.get_submodule(names[5]).merge = lambda: None
    with pytest.raises(CheckError, match=r"merging lost the adapters: logits differ by"):
        merge(model, names, batch, "phase")


def test_with_adapters_nothing_else_of_the_language_model_may_change(parent: Path) -> None:
    parts, model = ("language_model", "projector"), load_model(parent, "cpu")
    before = fingerprints(model)
    names = inject(model, LORA, 0, "phase")
    sizes = freeze_all_but(model, parts, "phase", names)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sizes["language_model"] == sum(p.numel() for n, p in trained.items() if ".lora_" in n)
    assert sizes["projector"] == sum(p.numel() for n, p in trained.items() if "multi_modal_projector" in n)
    check_trainable(model, torch.optim.AdamW(trained.values()), parts, "phase", names)
    without = [p for n, p in trained.items() if n != f"{names[0]}.lora_B.default.weight"]
    with pytest.raises(CheckError, match=r"lora_B.default.weight is not trained, but .* language_model \(its adapters\)"):
        check_trainable(model, torch.optim.AdamW(without), parts, "phase", names)
    base = model.get_submodule(names[0]).get_base_layer().weight
    with pytest.raises(CheckError, match=r"base_layer.weight would be trained"):
        check_trainable(model, torch.optim.AdamW([*trained.values(), base]), parts, "phase", names)

    def changed(*touched: str) -> int:
        plain = load_model(parent, "cpu")
        with torch.no_grad():
            for name in touched:
                plain.get_parameter(name).view(-1)[0] += 1e-2
        return check_changes(before, plain, parts, "phase", names)

    due = [f"{n}.weight" for n in names] + ["model.multi_modal_projector.linear_1.weight"]
    assert changed(*due) == 15
    with pytest.raises(CheckError, match=r"lm_head\.weight changed, although what has no adapter is frozen"):
        changed(*due, "lm_head.weight")
    with pytest.raises(CheckError, match=rf"{due[2]} is what it was, although its adapter was trained"):
        changed(*due[:2], *due[3:])
