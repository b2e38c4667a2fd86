"""What the doctor says of sizes: parameters are those of the files, and memory follows the papers' formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlsafe.doctor.memory import DEFAULT_LENGTH, Training, activations, answering, memory, trainings
from vlsafe.doctor.room import stored
from vlsafe.doctor.shapes import CLIP_L, LANGUAGE_MODELS, LLAMA_7B, Size, shape_of, size_of
from vlsafe.model.assembled import Assembled
from vlsafe.roles import role_table
from vlsafe.sources import Source
from vlsafe.train.adaptation import Llava
from vlsafe.train.deepspeed import Zero
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization
from vlsafe.train.released import ReleasedAdaptation
from vlsafe.train.tuning import Supervised

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


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)])
def test_weights_are_counted_as_training_holds_them(stored: str, precision: Any, lora: Lora | None) -> None:
    import torch

    from vlsafe.stand_in.lvlms import make_lvlm
    from vlsafe.train.dtypes import hold
    from vlsafe.train.parts import part_of
    from vlsafe.train.phase import Phase

    model = make_lvlm("vicuna", "clip", 1)[0].to(getattr(torch, stored))
    setting = Optimization(steps=1, batch_size=1, learning_rate=1e-4, precision=precision)
    parts: Any = ("projector",) if lora else ("language_model", "projector")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trained = sum(size for name, size in sizes.items() if part_of(name) in parts)
    hold(model, Phase("all", "sft", list, setting, parts, 0, lora=lora))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    training = Training("all", trained, sum(sizes.values()) - trained, precision, 1, 8, stored)
    copies = 2 * trained if precision == "bf16" else 0
    assert memory(training, SEVEN, None, 1, True).states == weights + copies + 12 * trained


def cell_of(**components: Any) -> Any:
    """As much of a cell as is looked at for dtypes."""
    adapts, tunes = (components[group].trains for group in ("adaptation", "safety_tune"))
    return SimpleNamespace(components=components, roles=role_table(adapts, tunes, components["safety_tune"].order))


def test_the_dtype_before_a_training_is_that_of_what_it_starts_from() -> None:
    phase = Optimization(steps=1, batch_size=1, learning_rate=1e-4)
    llama, tulu = (
        Assembled(Source(id), Source("openai/clip-vit-large-patch14-336"))
        for id in ("meta-llama/Llama-2-7b-chat-hf", "allenai/tulu-2-7b")
    )
    tuned = Supervised(optimization=phase, helpful=0.0)
    assert stored(cell_of(model=llama, adaptation=Llava(phase, phase), safety_tune=tuned), "base") == "float16"
    assert stored(cell_of(model=tulu, adaptation=Llava(phase, phase), safety_tune=tuned), "adapted") == "bfloat16"
    for save, kept in (("parent", "float16"), ("bf16", "bf16"), ("fp32", "fp32")):
        adaptation = Llava(phase, phase, save_dtype=save)  # type: ignore[arg-type]
        assert stored(cell_of(model=llama, adaptation=adaptation, safety_tune=tuned), "adapted") == kept
    released = ReleasedAdaptation(Source("Qwen/Qwen2.5-VL-3B-Instruct"))
    assert stored(cell_of(model=llama, adaptation=released, safety_tune=tuned), "adapted") == "bfloat16"
    released = ReleasedAdaptation(Source("someone/unknown"))
    assert stored(cell_of(model=llama, adaptation=released, safety_tune=tuned), "adapted") is None
    assert (
        stored(cell_of(model=dataclasses.replace(llama, dtype="fp32"), adaptation=released, safety_tune=tuned), "base")
        == "fp32"
    )


def test_frozen_weights_of_16_other_bits_are_held_in_32() -> None:
    projector = dataclasses.replace(FULL, trained=SEVEN.projector, frozen=SEVEN.parameters - SEVEN.projector)
    kept, widened, unknown = (
        memory(dataclasses.replace(projector, stored=dtype), SEVEN, None, 1, True).states for dtype in ("bf16", "float16", None)
    )
    assert widened - kept == pytest.approx(2 * projector.frozen)
    assert unknown == widened
    split = [
        memory(dataclasses.replace(projector, stored=dtype), SEVEN, Zero(2), 8, True).states for dtype in ("bf16", "float16")
    ]
    assert split[0] == split[1]  # DeepSpeed makes bf16 of all of it
