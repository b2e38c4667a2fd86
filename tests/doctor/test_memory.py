"""What the doctor says of sizes: parameters are those of the files, and memory follows the papers' formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vlsafe.doctor.memory import DEFAULT_LENGTH, Training, activations, answering, memory, trainings
from vlsafe.doctor.shapes import CLIP_L, LANGUAGE_MODELS, LLAMA_7B, Size, shape_of, size_of
from vlsafe.model.assembled import Assembled
from vlsafe.sources import Source
from vlsafe.train.adaptation import Llava
from vlsafe.train.deepspeed import Zero
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization

SEVEN = Size(LLAMA_7B, CLIP_L)
FULL = Training("all", SEVEN.llm.parameters, SEVEN.parameters - SEVEN.llm.parameters, "bf16", 16, 2048)


def test_a_published_model_has_the_parameters_that_its_card_says() -> None:
    assert LLAMA_7B.parameters == 6_738_415_616
    assert LANGUAGE_MODELS["meta-llama/Meta-Llama-3-8B-Instruct"].parameters == 8_030_261_248
    assert LANGUAGE_MODELS["mistralai/Mistral-7B-Instruct-v0.2"].parameters == 7_241_732_096
    assert LANGUAGE_MODELS["HuggingFaceTB/SmolLM2-135M-Instruct"].parameters == 134_515_008


@pytest.mark.parametrize("family", ["llama2", "llama3", "smollm2"])
def test_a_folders_parameters_are_read_from_its_config(tmp_path: Path, family: str) -> None:
    from vlsafe.model.weights import open_checkpoint
    from vlsafe.stand_in.models import write_llm

    write_llm(tmp_path, family)
    shape = shape_of(Source("org/name", folder=str(tmp_path)))
    assert shape is not None
    assert shape.parameters == sum(t.parameters for t in open_checkpoint(tmp_path).tensors.values())


def test_an_assembled_model_is_its_parts() -> None:
    size = size_of(Assembled(Source("meta-llama/Llama-2-7b-chat-hf"), Source("openai/clip-vit-large-patch14-336")))
    assert size == SEVEN
    assert size_of(Assembled(Source("someone/unknown"), Source("openai/clip-vit-large-patch14-336"))) is None


def test_zero_splits_more_with_each_stage_and_all_of_it_at_the_third() -> None:
    states = [memory(FULL, SEVEN, Zero(stage), 8, True).states for stage in (1, 2, 3)]
    assert states[0] > states[1] > states[2]
    alone = memory(FULL, SEVEN, Zero(3), 1, True).states
    assert states[2] == pytest.approx(alone / 8)
    assert alone == pytest.approx(16 * FULL.trained + 2 * FULL.frozen)  # arXiv 1910.02054, section 3.1: 16 bytes a parameter


def test_offload_moves_what_it_says_into_the_hosts_memory() -> None:
    split, moved = (memory(FULL, SEVEN, Zero(3, offload=off), 8, True) for off in (False, True))
    assert split.host == 0
    assert moved.states < split.states
    assert moved.states * 8 + moved.host == pytest.approx(split.states * 8)


def test_adapters_need_little_more_than_the_weights() -> None:
    lora = Lora(rank=128, alpha=256)
    assert LLAMA_7B.adapters(lora) == 319_815_680  # as peft counts them: all seven linear layers of 32 blocks
    phase = Optimization(steps=1, batch_size=16, learning_rate=1e-4, precision="bf16")
    component = Llava(phase, phase, lora=lora)
    projector, adapted = trainings(component, "adaptation", SEVEN, 1, None)
    assert projector.trained == SEVEN.projector
    assert adapted.trained == SEVEN.projector + LLAMA_7B.adapters(lora)
    assert memory(adapted, SEVEN, None, 1, True).states < 0.2 * memory(FULL, SEVEN, None, 1, True).states


def test_gradient_checkpointing_holds_fewer_activations() -> None:
    assert activations(FULL, SEVEN, checkpointing=True) < 0.3 * activations(FULL, SEVEN, checkpointing=False)
    half = dataclasses.replace(FULL, micro=8)
    assert activations(half, SEVEN, True) == pytest.approx(activations(FULL, SEVEN, True) / 2)


def test_a_process_takes_its_share_of_the_batch() -> None:
    phase = Optimization(steps=1, batch_size=128, learning_rate=1e-4, precision="bf16")
    (first, _) = trainings(Llava(phase, phase), "adaptation", SEVEN, 8, 4)
    assert (first.micro, first.length) == (4, DEFAULT_LENGTH)
    (first, _) = trainings(Llava(phase, phase), "adaptation", SEVEN, 8, None)
    assert first.micro == 16


def test_keys_and_values_are_those_of_the_attention_heads() -> None:
    more = answering(SEVEN, 2, 0) - answering(SEVEN, 1, 0)
    assert more == DEFAULT_LENGTH * 2 * 32 * 4096 * 2  # keys and values, layers, width, bytes
