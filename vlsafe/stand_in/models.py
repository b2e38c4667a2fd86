"""Tiny random models in the architectures and layouts of the hub's: language models, vision towers; LLaVAs are in `lvlms`.

    write_llm(folder, "llama2")
    write_tower(folder, "clip")
    write_lvlm(folder, "llava, transformers 4")     (vlsafe.stand_in.lvlms)
    MODELS["llava-hf/llava-1.5-7b-hf"](folder)      what stands for that id

Bytes are the same on every run. They know nothing: they show that the way is open, never what a model would do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vlsafe.stand_in.words import WORDS, make_tokenizer

WIDTH, LAYERS, HEADS = 32, 2, 4
TOWER_WIDTH, PATCH = 24, 14
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Family:
    """A language model as it is released: the class that holds it, and what of its shape the family is known for."""

    architecture: str
    dtype: Dtype
    key_value_heads: int = HEADS
    tied: bool = False
    rows: int | None = None  # of the embedding, where they are more than the tokens
    shards: int = 1
    more_ends: tuple[str, ...] = ()  # besides the tokenizer's, in generation_config.json


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama2": Family("Llama", "float16", shards=2),
        "vicuna": Family("Llama", "float16", shards=2),
        "tulu": Family("Llama", "bfloat16", shards=3),
        "llama3": Family("Llama", "bfloat16", key_value_heads=2, more_ends=("<|end_of_text|>",), shards=2),
        "mistral": Family("Mistral", "bfloat16", key_value_heads=2, shards=3),
        "qwen2": Family("Qwen2", "bfloat16", key_value_heads=2, rows=448, more_ends=("<|endoftext|>",), shards=4),
        "smollm2": Family("Llama", "bfloat16", key_value_heads=2, tied=True),
    }
)


def write_llm(folder: Path, family: str, seed: int = 0, dtype: Dtype | None = None, shards: int | None = None) -> None:
    """A language model and its tokenizer, as the hub has them."""
    record, tokenizer = FAMILIES[family], make_tokenizer(family)
    model = make_llm(family, seed)
    state = dict(model.state_dict())
    if record.tied:
        state.pop("lm_head.weight")
    kept = dtype or record.dtype
    write_weights(folder, state, kept, record.shards if shards is None else shards)
    write_config(folder, model.config, f"{record.architecture}ForCausalLM", kept)
    write_tokenizer(folder, tokenizer, tokenizer.chat_template)
    ends = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in record.more_ends)]
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends if len(ends) > 1 else ends[0], "do_sample": True,
         "temperature": 0.6, "top_p": 0.9},
    )  # fmt: skip


def make_llm(family: str, seed: int = 0, rows: int | None = None) -> Any:
    """Its weights drawn from `seed`; `rows` of the embedding in place of the family's own."""
    import torch
    import transformers

    record, words, tokenizer = FAMILIES[family], WORDS[family], make_tokenizer(family)
    settings: dict[str, Any] = {
        "vocab_size": rows or record.rows or len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": record.key_value_heads,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "tie_word_embeddings": record.tied,
        "bos_token_id": tokenizer.convert_tokens_to_ids(words.bos) if words.bos else None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    config = getattr(transformers, f"{record.architecture}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, f"{record.architecture}ForCausalLM")(config)


@dataclass(frozen=True)
class TowerKind:
    """A two-tower model of pictures and texts, as it is released."""

    name: str  # the class's first part, in transformers
    size: int  # of a picture, in pixels; SigLIP's is no multiple of the patch, as the real one's
    pictures: Mapping[str, Any]  # preprocessor_config.json


def _scaled(kind: str, size: int, mean: list[float], deviation: list[float], crops: bool) -> dict[str, Any]:
    square = {"height": size, "width": size}
    own = {"size": {"shortest_edge": size}, "crop_size": square, "do_center_crop": True, "do_convert_rgb": True}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        **(own if crops else {"size": square}),
        "do_resize": True,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": mean,
        "image_std": deviation,
    }


_CLIP_MEAN, _CLIP_DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TOWERS: Mapping[str, TowerKind] = MappingProxyType(
    {
        "clip": TowerKind("CLIP", 3 * PATCH, _scaled("CLIP", 3 * PATCH, _CLIP_MEAN, _CLIP_DEVIATION, True)),
        "siglip": TowerKind("Siglip", 3 * PATCH + 3, _scaled("Siglip", 3 * PATCH + 3, [0.5] * 3, [0.5] * 3, False)),
    }
)


def write_tower(folder: Path, kind: str, seed: int = 0) -> None:
    """A whole CLIP or SigLIP, the text tower too, as the hub has them."""
    model = make_two_towers(kind, seed)
    write_weights(folder, model.state_dict(), "float32", 1)
    write_config(folder, model.config, f"{TOWERS[kind].name}Model", "float32")
    write_json(folder / "preprocessor_config.json", TOWERS[kind].pictures)


def make_two_towers(kind: str, seed: int = 0) -> Any:
    import torch
    import transformers

    record = TOWERS[kind]
    common = {"hidden_size": TOWER_WIDTH, "intermediate_size": 2 * TOWER_WIDTH, "num_attention_heads": 2}
    vision = {**common, "num_hidden_layers": 3, "image_size": record.size, "patch_size": PATCH}
    text = {**common, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    joint = {"projection_dim": TOWER_WIDTH} if kind == "clip" else {}
    config = getattr(transformers, f"{record.name}Config")(vision_config=vision, text_config=text, **joint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return getattr(transformers, f"{record.name}Model")(config)


def write_weights(folder: Path, state: Mapping[str, Any], dtype: Dtype, shards: int) -> None:
    import torch

    from vlsafe.model.weights import TensorInfo, write_checkpoint

    kept = {name: tensor.detach().to(getattr(torch, dtype)) for name, tensor in state.items() if tensor.is_floating_point()}
    layout = [TensorInfo(name, dtype, tuple(tensor.shape)) for name, tensor in kept.items()]
    size = max(sum(info.bytes for info in layout) // shards + 1, 1)
    write_checkpoint(folder, layout, lambda info: kept[info.name], size if shards > 1 else 10**9)


def write_config(folder: Path, config: Any, architecture: str, dtype: Dtype) -> None:
    settings = config.to_dict() | {"architectures": [architecture], "torch_dtype": dtype}
    settings.pop("dtype", None)
    write_json(folder / "config.json", settings)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def write_tokenizer(folder: Path, tokenizer: Any, template: str | None) -> None:
    """With its chat template inside `tokenizer_config.json`, where the hub's older repositories have it."""
    own, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = own
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    write_json(path, settings | ({"chat_template": template} if template else {}))


def _lvlm(folder: Path, **settings: Any) -> None:
    from vlsafe.stand_in.lvlms import write_lvlm

    write_lvlm(folder, **settings)


MODELS: Mapping[str, Callable[[Path], None]] = MappingProxyType(
    {
        "meta-llama/Llama-2-7b-chat-hf": partial(write_llm, family="llama2"),
        "meta-llama/Meta-Llama-3-8B-Instruct": partial(write_llm, family="llama3"),
        "allenai/tulu-2-7b": partial(write_llm, family="tulu"),
        "lmsys/vicuna-7b-v1.5": partial(write_llm, family="vicuna"),
        "mistralai/Mistral-7B-Instruct-v0.2": partial(write_llm, family="mistral"),
        "Qwen/Qwen2.5-7B-Instruct": partial(write_llm, family="qwen2"),
        "HuggingFaceTB/SmolLM2-135M-Instruct": partial(write_llm, family="smollm2"),
        "openai/clip-vit-large-patch14-336": partial(write_tower, kind="clip"),
        "google/siglip-so400m-patch14-384": partial(write_tower, kind="siglip"),
        "llava-hf/llava-1.5-7b-hf": _lvlm,
        "liuhaotian/llava-v1.5-7b": partial(_lvlm, layout="llava, liuhaotian", shards=2),
        "ys-zong/llava-v1.5-7b-Mixed": partial(_lvlm, layout="llava, liuhaotian", seed=8, dtype="bfloat16"),
        "ys-zong/llava-v1.5-7b-Posthoc-lora": partial(_lvlm, layout="llava, liuhaotian", seed=9, dtype="bfloat16"),
    }
)
