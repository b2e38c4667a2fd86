"""Small random models in the Qwen2.5-VL family's architectures and layouts, and the Qwen2.5 language models they come from.

Special tokens, chat templates, file names and tensor names are those of the released models; widths, layers and the vocabulary
(bytes) are small. A picture takes a token for each 28 × 28 pixels, as there. The same call writes the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

VisionLayout = Literal["qwen2.5-vl, transformers 5 in memory", "qwen2.5-vl, transformers 4"]
# In the order of the released vocabularies, where they follow on the words.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
PLAIN_TEXT = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
BYTES = 256
ROWS = {True: 288, False: 320}  # of the embedding, by whether it is tied: 151,936 and 152,064 in the released ones
MOST_PICTURE_TOKENS = 16

TEXT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PICTURE_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str) -> Any:
    """Qwen2.5's classes and special tokens over single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, Qwen2Tokenizer

    made = Qwen2Tokenizer(
        vocab={letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        model_max_length=131072,
        chat_template=template,
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TEXT])
    return made


def _text_settings(tied: bool, hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": ROWS[tied],
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 16,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "bos_token_id": _id("<|endoftext|>"),
        "eos_token_id": _id("<|im_end|>"),
        "initializer_range": 0.1,  # wide, so that answers differ between prompts and pictures
    }


def _id(token: str) -> int:
    return BYTES + SPECIAL.index(token)


def write_llm(
    folder: Path, tied: bool = False, seed: int = 0, hidden: int = 32, layers: int = 2, dtype: str = "bfloat16"
) -> Path:
    """A Qwen2.5-Instruct: `Qwen2ForCausalLM`, its tokenizer and its ChatML template."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = _text_settings(tied, hidden, layers)
    model = _random(lambda: Qwen2ForCausalLM(Qwen2Config(**settings, rope_parameters=_rope())), seed)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer(TEXT_TEMPLATE).save_pretrained(folder)
    return folder


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1_000_000.0, **more}


def _random(build: Callable[[], Any], seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
    ends = [_id("<|im_end|>"), _id("<|endoftext|>")]
    model.generation_config.update(
        bos_token_id=ends[1], eos_token_id=ends, pad_token_id=ends[1], do_sample=True, repetition_penalty=1.05
    )
    return model


def write_lvlm(
    folder: Path,
    layout: VisionLayout = "qwen2.5-vl, transformers 4",
    tied: bool = False,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    dtype: str = "bfloat16",
    shard_bytes: int = 10**9,
) -> Path:
    """A Qwen2.5-VL-Instruct, as the hub has it (the layout of transformers 4) or as transformers 5 saves it."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    from vlsafe.model.families import QWEN2_5_VL
    from vlsafe.model.parts import stored_name
    from vlsafe.model.qwen import Qwen2_5_VLProcessor
    from vlsafe.model.weights import TensorInfo, write_checkpoint

    config = Qwen2_5_VLConfig(
        text_config={**_text_settings(tied, hidden, layers), "rope_parameters": _rope(mrope_section=[2, 3, 3])},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "initializer_range": 0.1,
        },
        tie_word_embeddings=tied,
        **{f"{name}_token_id": _id(f"<|{name}|>") for name in ("vision_start", "vision_end")},
        image_token_id=_id("<|image_pad|>"),
        video_token_id=_id("<|video_pad|>"),
    )
    model = _random(lambda: Qwen2_5_VLForConditionalGeneration(config), seed).to(getattr(torch, dtype))
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    names = next(known for known in QWEN2_5_VL.layouts if known.name == layout)
    state = {stored_name(name, names): tensor for name, tensor in model.state_dict().items()}
    if tied:
        state.pop("lm_head.weight")
    infos = [TensorInfo(name, dtype, tuple(tensor.shape)) for name, tensor in state.items()]
    write_checkpoint(folder, infos, lambda info: state[info.name], shard_bytes)

    side = 28 * 28
    pictures = Qwen2VLImageProcessorPil(min_pixels=side, max_pixels=MOST_PICTURE_TOKENS * side)
    Qwen2_5_VLProcessor(pictures, tokenizer(PICTURE_TEMPLATE), chat_template=PICTURE_TEMPLATE).save_pretrained(folder)
    _write_config(folder, architecture=type(model).__name__, dtype=dtype, flat="transformers 4" in layout)
    return folder


def _write_config(folder: Path, architecture: str, dtype: str, flat: bool) -> None:
    """As that release wrote it: version 4 had the settings of the language model at the top of config.json, those of pictures
    in preprocessor_config.json and the template in chat_template.json."""
    config = _read(folder / "config.json") | {"architectures": [architecture]}
    if flat:
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
        for name in ("model_type", "layer_types", "dtype", "pad_token_id"):
            text.pop(name, None)
        config.pop("dtype", None)
        config = text | config | {"torch_dtype": dtype}
        config["vision_config"]["model_type"] = "qwen2_5_vl"
        pictures = _read(folder / "processor_config.json")["image_processor"]
        size = pictures.pop("size")
        pictures |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        _write(folder / "preprocessor_config.json", pictures | {"processor_class": "Qwen2_5_VLProcessor"})
        _write(folder / "chat_template.json", {"chat_template": PICTURE_TEMPLATE})
        for name in ("processor_config.json", "chat_template.jinja"):
            (folder / name).unlink()
    else:
        config["dtype"] = dtype
    _write(folder / "config.json", config)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8")))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


MODELS: dict[str, Callable[[Path], object]] = {
    "Qwen/Qwen2.5-3B-Instruct": lambda folder: write_llm(folder, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": lambda folder: write_llm(folder),
    "Qwen/Qwen2.5-VL-3B-Instruct": lambda folder: write_lvlm(folder, tied=True, seed=1),
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda folder: write_lvlm(folder, seed=1, shard_bytes=200_000),
}
