"""Small random models in the Qwen2.5-VL family's architecture and layouts, around the language models of `models`.

Special tokens, chat template, file names and tensor names are those of the released models. A picture takes a token for each
28 × 28 pixels, as there. The same call writes the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from vlsafe.stand_in.models import Dtype, make_llm, tokenizer_of, write_json, write_tokenizer, write_weights

VisionLayout = Literal["qwen2.5-vl, transformers 5 in memory", "qwen2.5-vl, transformers 4"]
SIDE = 28  # pixels that make a token
MOST_TOKENS = 16  # of a picture
# What of a language model's configuration the model around it takes over.
TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "eos_token_id"),
)
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_lvlm(
    folder: Path,
    layout: VisionLayout = "qwen2.5-vl, transformers 4",
    llm: Literal["qwen2", "qwen2_3b"] = "qwen2",
    seed: int = 1,
    dtype: Dtype = "bfloat16",
    shards: int = 1,
    spread: float = 0.1,
) -> Path:
    """A Qwen2.5-VL-Instruct, as the hub has it (the layout of transformers 4) or as transformers 5 saves it. Around `qwen2` the
    output matrix is its own, around `qwen2_3b` the embedding. The wider the `spread` of weights, the more answers differ."""
    from transformers import GenerationConfig, Qwen2VLImageProcessorPil

    from vlsafe.model.families import QWEN2_5_VL
    from vlsafe.model.parts import stored_name
    from vlsafe.model.qwen import Qwen2_5_VLProcessor

    tokenizer = tokenizer_of(llm)
    tokenizer.chat_template = TEMPLATE
    model = make_lvlm(llm, seed, spread)
    names = next(known for known in QWEN2_5_VL.layouts if known.name == layout)
    state = {stored_name(name, names): tensor for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, state, dtype, shards)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    GenerationConfig(
        bos_token_id=ends[1], eos_token_id=ends, pad_token_id=ends[1], do_sample=True, repetition_penalty=1.05
    ).save_pretrained(folder)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    pictures = Qwen2VLImageProcessorPil(min_pixels=SIDE**2, max_pixels=MOST_TOKENS * SIDE**2)
    Qwen2_5_VLProcessor(pictures, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)
    if "transformers 4" in layout:
        write_tokenizer(folder, tokenizer, TEMPLATE)
        _as_version_4(folder, config, dtype)
    else:
        write_json(folder / "config.json", config | {"dtype": dtype})
    return folder


def make_lvlm(llm: str, seed: int, spread: float) -> Any:
    """Its weights drawn from `seed`, those of the language model too: it has been trained on."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    own, tokenizer = make_llm(llm).config, tokenizer_of(llm)
    rope = {"rope_type": "default", "rope_theta": own.rope_parameters["rope_theta"]}
    rotated = own.hidden_size // own.num_attention_heads // 2  # of a head, as much for time, rows and columns
    text = {name: getattr(own, name) for name in TEXT} | {"initializer_range": spread, "bos_token_id": None}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": own.hidden_size,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "initializer_range": spread,
    }
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    config = Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope | {"mrope_section": [rotated - 2 * (rotated // 3), *[rotated // 3] * 2]}},
        vision_config=vision,
        tie_word_embeddings=own.tie_word_embeddings,
        **{f"{name}_token_id": value for name, value in ids.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
        with torch.no_grad():  # biases and norms, which start as zeros and ones, differ too
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += spread * torch.randn(parameter.shape)
    return model


def _as_version_4(folder: Path, config: dict[str, Any], dtype: Dtype) -> None:
    """It had the settings of the language model at the top of config.json, those of pictures in preprocessor_config.json and
    the template in chat_template.json."""
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    for name in ("model_type", "layer_types", "dtype", "pad_token_id"):
        text.pop(name, None)
    config.pop("dtype", None)
    config["vision_config"]["model_type"] = "qwen2_5_vl"
    write_json(folder / "config.json", text | config | {"torch_dtype": dtype})
    pictures = json.loads((folder / "processor_config.json").read_text("utf-8"))["image_processor"]
    size = pictures.pop("size")
    pictures |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    write_json(folder / "preprocessor_config.json", pictures | {"processor_class": "Qwen2_5_VLProcessor"})
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})
    for name in ("processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
