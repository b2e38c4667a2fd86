"""How many parameters a model has: from its config.json where that is at hand, else from what is published of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vlsafe.doctor.cache import cached
from vlsafe.sources import Source
from vlsafe.train.lora import Lora


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind: grouped-query attention, a gated feed-forward of three matrices, two norms a layer."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False
    head: int | None = None  # of one head; null: hidden / heads
    dtype: str | None = "bfloat16"  # that its weights are stored in

    @property
    def head_size(self) -> int:
        return self.head or self.hidden // self.heads

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block."""
        query, key = self.heads * self.head_size, self.key_value_heads * self.head_size
        wide = (self.hidden, self.feed_forward)
        return [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden), wide, wide, wide[::-1]]

    @property
    def parameters(self) -> int:
        """Embeddings, blocks with their two norms, and the last norm; biases aside."""
        block = sum(i * o for i, o in self.linear) + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * block + self.hidden

    def adapters(self, lora: Lora) -> int:
        """Low-rank adapters on every linear layer of the blocks: rank · (in + out) each."""
        return self.layers * sum(lora.rank * (i + o) for i, o in self.linear)

    @property
    def cache(self) -> int:
        """Bytes of keys and values for one token, in 16 bits."""
        return 2 * 2 * self.layers * self.key_value_heads * self.head_size


LLAMA_7B = Shape(4096, 11008, 32, 32, 32, 32000, dtype="float16")
QWEN25_3B = Shape(2048, 11008, 36, 16, 2, 151936, tied=True)
QWEN25_7B = Shape(3584, 18944, 28, 28, 4, 152064)
# From each repository's config.json on the hub.
LANGUAGE_MODELS: Mapping[str, Shape] = MappingProxyType(
    {
        "meta-llama/Llama-2-7b-chat-hf": LLAMA_7B,
        "lmsys/vicuna-7b-v1.5": LLAMA_7B,
        "allenai/tulu-2-7b": Shape(4096, 11008, 32, 32, 32, 32001),
        "meta-llama/Meta-Llama-3-8B-Instruct": Shape(4096, 14336, 32, 32, 8, 128256),
        "meta-llama/Llama-Guard-3-8B": Shape(4096, 14336, 32, 32, 8, 128256),
        "mistralai/Mistral-7B-Instruct-v0.2": Shape(4096, 14336, 32, 32, 8, 32000),
        "Qwen/Qwen2.5-3B-Instruct": QWEN25_3B,
        "Qwen/Qwen2.5-7B-Instruct": QWEN25_7B,
        "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(576, 1536, 30, 9, 3, 49152, tied=True),
        "llava-hf/llava-1.5-7b-hf": LLAMA_7B,
        "ys-zong/llava-v1.5-7b-Mixed": LLAMA_7B,
        "Qwen/Qwen2.5-VL-3B-Instruct": QWEN25_3B,
        "Qwen/Qwen2.5-VL-7B-Instruct": QWEN25_7B,
    }
)
# The vision side, in parameters: embeddings, and in each layer four matrices of attention, two of the feed-forward, biases,
# norms.
CLIP_L, SIGLIP_SO, QWEN_TOWER = 303_507_456, 428_225_600, 669_000_000
TOWERS: Mapping[str, int] = MappingProxyType(
    {
        "openai/clip-vit-large-patch14-336": CLIP_L,
        "llava-hf/llava-1.5-7b-hf": CLIP_L,
        "google/siglip-so400m-patch14-384": SIGLIP_SO,
        "Qwen/Qwen2.5-VL-3B-Instruct": QWEN_TOWER,
        "Qwen/Qwen2.5-VL-7B-Instruct": QWEN_TOWER,
    }
)


@dataclass(frozen=True)
class Size:
    """A vision-language model: its language model, and the parameters of its tower and of its projector (two layers)."""

    llm: Shape
    tower: int

    @property
    def projector(self) -> int:
        width = 1024
        return (width + self.llm.hidden) * self.llm.hidden

    @property
    def parameters(self) -> int:
        return self.llm.parameters + self.tower + self.projector


def size_of(model: Any) -> Size | None:
    """Of a component of the group `model`; None where what it is made of is not known here."""
    llm, lvlm = getattr(model, "llm", None), getattr(model, "lvlm", None)
    tower = getattr(model, "tower", None) or lvlm
    if not isinstance(llm, Source):
        return None
    shape = shape_of(llm)
    if shape is None:
        return None
    return Size(shape, TOWERS.get(str(getattr(tower, "id", None)), CLIP_L))


def shape_of(source: Source) -> Shape | None:
    folder = source.path or cached(source)
    if folder is not None and (folder / "config.json").is_file():
        try:
            return read_shape(json.loads((folder / "config.json").read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return LANGUAGE_MODELS.get(str(source.id))


def read_shape(config: Mapping[str, Any]) -> Shape:
    text = config.get("text_config", config)
    return Shape(
        text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"], text["num_attention_heads"],
        text.get("num_key_value_heads", text["num_attention_heads"]), text["vocab_size"],
        bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))), text.get("head_dim"),
        next((str(c[name]) for c in (config, text) for name in ("dtype", "torch_dtype") if c.get(name)), None),
    )  # fmt: skip
