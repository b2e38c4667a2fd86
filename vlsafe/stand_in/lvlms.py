"""Tiny LLaVAs in every layout that LLaVA's weights have had, with the files that lie beside them on the hub.

Their vision tower is the stand-in of CLIP, bit for bit but for the dtype, as a released LLaVA's is CLIP's; their language model
is the family's stand-in, moved a little, as if it had been trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlsafe.stand_in.models import (
    FAMILIES,
    TOWERS,
    Dtype,
    make_llm,
    make_two_towers,
    write_config,
    write_json,
    write_tokenizer,
    write_weights,
)
from vlsafe.stand_in.words import make_tokenizer

# Both roles take parts; the image token stands where the picture does. LLaVA-1.5 has no system prompt of its own in it.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ message['role'].upper() + ': ' }}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endif -%}{%- endfor -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}"
    "{%- if message['role'] == 'assistant' -%}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}"
    "{%- else -%}{{ part['text'] + ' ' }}{%- endif -%}{%- endif -%}{%- endfor -%}{%- endfor -%}"
    "{{ 'ASSISTANT:' if add_generation_prompt else '' }}"
)
LIUHAOTIAN = "llava, liuhaotian"


def write_lvlm(
    folder: Path,
    layout: str = "llava, transformers 4",
    llm: str = "vicuna",
    tower: str = "clip",
    seed: int = 7,
    dtype: Dtype = "float16",
    shards: int = 3,
    with_tower: bool = True,
) -> None:
    """A LLaVA whose tensors have the names of `layout` (one of `vlsafe.model.parts.LAYOUTS`).

    LLaVA's own layout has the language model's vocabulary, no processor, and (without `with_tower`) no tower.
    """
    from vlsafe.model.parts import LAYOUTS, canonical_name, stored_name

    model, processor = make_lvlm(llm, tower, seed)
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    if layout == LIUHAOTIAN:
        tokens = FAMILIES[llm].rows or len(make_tokenizer(llm))
        words = ("embed_tokens.weight", "lm_head.weight")
        state = {name: tensor[:tokens] if name.endswith(words) else tensor for name, tensor in state.items()}
        state = {n: t for n, t in state.items() if with_tower or not n.startswith("model.vision_tower.")}
    record = next(x for x in LAYOUTS if x.name == layout)
    write_weights(folder, {stored_name(canonical_name(n), record): t for n, t in state.items()}, dtype, shards)
    tokenizer = processor.tokenizer
    if layout == LIUHAOTIAN:
        _write_own_config(folder, model.config, llm, tower, dtype)
        write_tokenizer(folder, make_tokenizer(llm), template=None)
    else:
        write_config(folder, model.config, "LlavaForConditionalGeneration", dtype)
        write_tokenizer(folder, tokenizer, template=None)
        write_json(folder / "preprocessor_config.json", {**TOWERS[tower].pictures, "processor_class": "LlavaProcessor"})
        settings = {
            "image_token": "<image>",
            "num_additional_image_tokens": processor.num_additional_image_tokens,
            "patch_size": processor.patch_size,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": processor.vision_feature_select_strategy,
        }
        write_json(folder / "processor_config.json", settings)
        write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
    )


def make_lvlm(llm: str, tower: str, seed: int) -> tuple[Any, Any]:
    """The model in memory and its processor: a joined one, of which everything but the tower was moved by a few per cent."""
    import torch
    import transformers

    from vlsafe.model.assemble import assemble
    from vlsafe.model.assembled import make_processor
    from vlsafe.model.towers import tower_of

    kind = TOWERS[tower]
    whole = make_two_towers(tower)
    record = tower_of(whole.config.model_type, "stand-in")
    vision = getattr(transformers, record.model)(whole.config.vision_config)
    vision.load_state_dict(whole.vision_model.state_dict())
    settings = {name: value for name, value in kind.pictures.items() if name != "image_processor_type"}
    pictures = getattr(transformers, record.image_processor)(**settings)
    processor = make_processor(
        make_tokenizer(llm), pictures, vision.config, record, "default", "vicuna", "stand-in", "stand-in"
    )
    processor.tokenizer.chat_template = processor.chat_template = CHAT_TEMPLATE
    model = assemble(make_llm(llm), vision, processor, seed=seed, vocabulary="multiple_of_64")
    own = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("model.vision_tower."):
                parameter += 0.02 * torch.randn(parameter.shape, generator=own)
    return model, processor


def _write_own_config(folder: Path, config: Any, llm: str, tower: str, dtype: Dtype) -> None:
    """As LLaVA's code writes it: a language model's, with what it has to know of the tower."""
    text = json.loads(config.text_config.to_json_string())
    own = {name: value for name, value in text.items() if name not in ("dtype", "architectures", "model_type")}
    own |= {
        "architectures": [f"Llava{FAMILIES[llm].architecture}ForCausalLM"],
        "model_type": "llava",
        "torch_dtype": dtype,
        "vocab_size": FAMILIES[llm].rows or len(make_tokenizer(llm)),
        "pad_token_id": 0,
        "mm_vision_tower": {"clip": "openai/clip-vit-large-patch14-336", "siglip": "google/siglip-so400m-patch14-384"}[tower],
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
    }
    write_json(folder / "config.json", own)
