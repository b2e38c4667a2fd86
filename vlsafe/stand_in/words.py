"""Tokenizers of the language models' families, with a few hundred tokens in place of tens of thousands.

The kind is the family's: sentences of pieces with a byte for whatever has no piece (Llama 2 and its kin), or bytes that are
merged (Llama 3, Qwen 2.5, SmolLM2); so are the special tokens, who adds the first one, and the chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlsafe.model.templates import FAMILIES


@dataclass(frozen=True)
class Words:
    """What tells one family's tokenizer from another's."""

    kind: str  # the class in transformers
    bos: str | None
    eos: str
    pad: str | None
    special: tuple[str, ...]  # all of them, in their order, after the words
    template: str | None  # the name of the chat template; None: the hub's copy has none
    begins: bool = False  # the tokenizer puts bos in front


WORDS = {
    "llama2": Words("LlamaTokenizer", "<s>", "</s>", None, (), "llama2", begins=True),
    "vicuna": Words("LlamaTokenizer", "<s>", "</s>", "<unk>", (), None, begins=True),
    "tulu": Words("LlamaTokenizer", "<s>", "</s>", None, (), "tulu", begins=True),
    "mistral": Words("LlamaTokenizer", "<s>", "</s>", None, (), "mistral", begins=True),
    "llama3": Words(
        "PreTrainedTokenizerFast",
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "llama3",
        begins=True,
    ),
    "qwen2": Words(
        "Qwen2Tokenizer",
        None,
        "<|im_end|>",
        "<|endoftext|>",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "qwen2",
    ),
    "smollm2": Words(
        "GPT2Tokenizer",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "smollm2",
    ),
}
# Pairs to merge, the most frequent of English first; each makes one token. `_` is the space.
_PAIRS = (
    "_ t", "h e", "_t he", "i n", "_ a", "o n", "r e", "e r", "_ s", "_ w", "a t", "o u", "e n", "_ i", "i s", "_i s", "o r",
    "_ c", "e d", "_ p", "_ o", "_o f", "a n", "in g", "_ b", "_ f", "l l", "_ m", "e s", "_t o", "_a n", "_an d", "_ d",
)  # fmt: skip


def make_tokenizer(family: str) -> Any:
    """The family's tokenizer, of 390 tokens or fewer."""
    words = WORDS[family]
    tokenizer = _pieces(words) if words.kind == "LlamaTokenizer" else _bytes(words)
    if words.template is not None:
        tokenizer.chat_template = FAMILIES[words.template]
    return tokenizer


def _merged(vocabulary: dict[str, int], space: str) -> list[tuple[str, str]]:
    merges = []
    for pair in _PAIRS:
        left, right = pair.replace("_", space).split()
        if left not in vocabulary or right not in vocabulary:
            continue
        merges.append((left, right))
        vocabulary.setdefault(left + right, len(vocabulary))
    return merges


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _pieces(words: Words) -> Any:
    import transformers

    letters = "▁" + "".join(map(chr, range(33, 127)))
    vocabulary = _numbered(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters])
    merges = _merged(vocabulary, "▁")
    return transformers.LlamaTokenizer(
        vocab=vocabulary, merges=merges, pad_token=words.pad, add_bos_token=words.begins, model_max_length=4096
    )


def _bytes(words: Words) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = _numbered(sorted(pre_tokenizers.ByteLevel.alphabet()))
    merges = _merged(vocabulary, "Ġ")
    for token in words.special:
        vocabulary[token] = len(vocabulary)
    tokens = {"bos_token": words.bos, "eos_token": words.eos, "pad_token": words.pad, "unk_token": None}
    if words.kind != "PreTrainedTokenizerFast":
        first = {"unk_token": "<|endoftext|>"}
        own = getattr(transformers, words.kind)(vocab=vocabulary, merges=merges, **(tokens | first), model_max_length=4096)
        own.add_special_tokens({"extra_special_tokens": list(words.special)})
        return own
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(words.special))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{words.bos} $A",
        pair=f"{words.bos} $A {words.bos} $B",
        special_tokens=[(words.bos, vocabulary[str(words.bos)])],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8192, **tokens)
