"""Models of a few thousand parameters, through the standard classes, and rows to train them on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} :{% if m['content'] is string %} {{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %} <image>{% else %} {{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocabulary = {w: i for i, w in enumerate([*special, "user", "assistant", ":", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        chat_template=TEMPLATE,
        model_max_length=64,
    )


def text_config(hidden: int, layers: int, feed_forward: int, heads: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=48,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def language_model(
    folder: Path, hidden: int = 16, layers: int = 2, feed_forward: int = 32, heads: int = 2, seed: int = 0
) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(text_config(hidden, layers, feed_forward, heads)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llava(
    folder: Path, hidden: int = 16, layers: int = 2, feed_forward: int = 32, heads: int = 2, seed: int = 0, resize: bool = False
) -> Path:
    """`resize`: its processor takes pictures of any size."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    vision = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_config(hidden, layers, feed_forward, heads),
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=16,
    )
    torch.manual_seed(seed)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(
        do_resize=resize, do_center_crop=False, size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
    )
    LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def picture(seed: int) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def message(role: str, text: str, image: bool = False) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * image + [{"type": "text", "text": text}]}


def supervised(n: int, seed: int, pictures: float = 0.5, words: tuple[int, int] = (3, 9)) -> list[Any]:
    """`n` rows whose answer is the question's words in reverse."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        question = draw.choices(WORDS, k=draw.randint(*words))
        image = draw.random() < pictures
        rows.append(
            {
                "source": "pictures" if image else "text",
                "prompt": [message("user", " ".join(question), image)],
                "completion": [message("assistant", " ".join(reversed(question)))],
                "images": [picture(seed * 100_000 + i)] if image else [],
            }
        )
    return rows


def preferences(n: int, seed: int, pictures: float = 0.5) -> list[Any]:
    """`n` pairs: the question's words in reverse are preferred to its first word."""
    return [
        {
            "source": row["source"],
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [message("assistant", row["prompt"][0]["content"][-1]["text"].split()[0])],
            "images": row["images"],
        }
        for row in supervised(n, seed, pictures)
    ]
