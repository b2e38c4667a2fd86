"""The model artifact: standard classes, the same bits each time, and a killed build that goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlsafe.data.components import MicroworldData
from vlsafe.errors import CheckError, ConfigError, StageInterrupted
from vlsafe.microworld.bare_loop import ready_batch, train
from vlsafe.microworld.pictures import Cell, draw
from vlsafe.microworld.processor import build_processor
from vlsafe.microworld.world import World
from vlsafe.model.assemble import assemble
from vlsafe.model.components import Microworld, TowerTraining
from vlsafe.stage import Execution, StageContext, never
from vlsafe.train.optimization import Optimization

TINY = Microworld(
    pretraining=Optimization(steps=6, batch_size=8, learning_rate=1e-3, warmup_steps=2),
    alignment=Optimization(steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=2),
    tower=TowerTraining(steps=4, batch_size=8, learning_rate=1e-3),
    width=32,
    layers=2,
    heads=2,
    feed_forward=48,
    tower_width=16,
    tower_layers=1,
    tower_heads=2,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def built(folder: Path, settings: Microworld = TINY, should_stop: Callable[[], bool] = never) -> Path:
    """The aligned model, from the one before alignment, each in folders of its own that survive a stop."""

    def ctx(name: str, **parents: Path) -> StageContext:
        out, work = folder / name, folder / f"{name}-work"
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        execution = Execution(device="cpu", checkpoint_seconds=0.0)
        return StageContext(out, work, parents, execution, should_stop=should_stop)

    if not (folder / "unaligned" / "model.safetensors").exists():
        settings.build_unaligned(ctx("unaligned"))
    settings.build(ctx("out", model=folder / "unaligned"))
    return folder / "out"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("first"))


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_same_settings_give_the_same_bits(artifact: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # what ran before must not matter
    assert weights_hash(built(tmp_path)) == weights_hash(artifact)


def test_a_build_that_was_stopped_goes_on_to_the_same_bits(artifact: Path, tmp_path: Path) -> None:
    stopped_in = set()
    for _ in range(20):
        asked = [0]

        def stop(asked: list[int] = asked) -> bool:
            asked[0] += 1
            return asked[0] > 4

        try:
            built(tmp_path, should_stop=stop)
            break
        except StageInterrupted:
            stopped_in.add("alignment" if (tmp_path / "out-work").exists() else "pretraining")
            assert (tmp_path / "unaligned-work" / "tower.safetensors").exists()
    assert stopped_in == {"pretraining", "alignment"}
    assert weights_hash(tmp_path / "out") == weights_hash(artifact)


def test_the_artifact_opens_with_the_auto_classes_and_generates(artifact: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(artifact), AutoProcessor.from_pretrained(artifact)
    assert type(model) is LlavaForConditionalGeneration
    assert type(processor) is LlavaProcessor
    picture = draw(World(), {0: Cell("vase", "red")}, 0.5)
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how do i paint this ?"}]}]
    inputs = processor(text=processor.apply_chat_template(ask, add_generation_prompt=True), images=picture, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == model.config.image_seq_length
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= inputs["input_ids"].shape[1] + 3
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def test_the_saved_processor_equals_the_built_one(artifact: Path) -> None:
    from transformers import AutoProcessor, AutoTokenizer

    made, saved = build_processor(), AutoProcessor.from_pretrained(artifact)
    row = MicroworldData().supervised("instruct", 30, 0)[4]
    conversation = [*row["prompt"], *row["completion"]]
    text = made.apply_chat_template(conversation)
    assert saved.apply_chat_template(conversation) == text
    first = made(text=text, images=row["images"] or None, return_tensors="pt")
    second = saved(text=text, images=row["images"] or None, return_tensors="pt")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = AutoTokenizer.from_pretrained(artifact)
    assert alone.apply_chat_template(conversation, tokenize=False) == text
    assert alone.get_vocab() == made.tokenizer.get_vocab()


def test_a_prompt_is_the_beginning_of_the_whole_conversation() -> None:
    processor = build_processor()
    for row in MicroworldData().supervised("instruct", 20, 0):
        whole = processor.apply_chat_template([*row["prompt"], *row["completion"]])
        prompt = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
        assert whole.startswith(prompt)
        assert whole.endswith(processor.tokenizer.eos_token)
    plain = [{"role": "user", "content": "who likes the vase ?"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "who likes the vase ?"}]}]
    assert processor.apply_chat_template(plain) == processor.apply_chat_template(parts)


def test_assembling_keeps_every_weight_and_gives_new_words_the_mean(artifact: Path) -> None:
    from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    from vlsafe.microworld.tower import tower_config

    processor = build_processor()
    rows = len(processor.tokenizer)
    config = LlamaConfig(
        vocab_size=rows - 2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    llm, tower = LlamaForCausalLM(config), CLIPVisionModel(tower_config(16, 2, 2))
    before = {name: tensor.clone() for name, tensor in llm.state_dict().items()}
    model = assemble(llm, tower, processor, seed=3)
    after = model.state_dict()
    for name, tensor in before.items():
        where = name if name.startswith("lm_head") else "model.language_model." + name.removeprefix("model.")
        assert torch.equal(after[where][: len(tensor)], tensor)
    table = after["model.language_model.embed_tokens.weight"]
    assert torch.allclose(table[-1], before["model.embed_tokens.weight"].mean(0))
    for name, tensor in tower.state_dict().items():
        assert torch.equal(after["model.vision_tower." + name], tensor)
    again = assemble(LlamaForCausalLM(config), tower, processor, seed=3).state_dict()
    name = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(again[name], after[name])
    processor.image_processor.crop_size = {"height": 99, "width": 99}
    with pytest.raises(CheckError, match="crop_size"):
        assemble(LlamaForCausalLM(config), tower, processor)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="multiple of 8"):
        replace(TINY, width=34, heads=4).check()


def test_the_bare_loop_learns_and_leaves_frozen_parts_alone(artifact: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model, processor = AutoModelForImageTextToText.from_pretrained(artifact), build_processor()
    rows = MicroworldData().supervised("instruct", 16, 0)
    batch = ready_batch(processor, rows[:])
    tower = {name: tensor.clone() for name, tensor in model.model.vision_tower.state_dict().items()}
    parameters = [*model.model.language_model.parameters(), *model.model.multi_modal_projector.parameters()]
    losses = train(model, parameters, [batch] * 20, Optimization(steps=20, batch_size=16, learning_rate=5e-3))
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.equal(tensor, tower[name]) for name, tensor in model.model.vision_tower.state_dict().items())
    supervised = int((batch["labels"] != -100).sum())
    assert supervised == sum(
        len(processor.tokenizer(row["completion"][0]["content"][0]["text"])["input_ids"]) + 1 for row in rows
    )
