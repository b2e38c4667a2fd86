"""Joins a language model and a vision tower into a LLaVA whose projector is untrained: the study's starting point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from vlsafe.errors import CheckError
from vlsafe.model.towers import Select, check_size, features, strategy, tower_of

Vocabulary = Literal["exact", "multiple_of_64"]


def assemble(
    llm: Any,
    tower: Any,
    processor: Any,
    *,
    feature_layer: int = -2,
    select: Select = "default",
    seed: int = 0,
    vocabulary: Vocabulary = "exact",
    ends: list[int] | int | None = None,
    projector: Callable[[Any, int], Any] | None = None,
) -> Any:
    """A `LlavaForConditionalGeneration` made of `llm` (a causal language model) and `tower`, which it takes over as they are.

    `processor` is a `LlavaProcessor`; its tokenizer must have `<image>` and a padding token of its own. A language model whose
    vocabulary lacks their rows gets them, each the mean of its embeddings (as LLaVA-1.5's 32,000 became 32,064); under
    `multiple_of_64` there are more, for tokens that there are not. `ends` are the ids that end an answer, by default the
    tokenizer's. The projector is made by `projector(config, seed)`. Raises `CheckError` where the tokenizer or the picture size
    does not fit.
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise CheckError("assemble: the tokenizer has no padding token; add one of its own (as LLaVA-1.5 does: '<pad>')")
    vision = tower.config
    record = tower_of(vision.model_type, "assemble")
    check_size(processor.image_processor, vision, "assemble")
    dtype = llm.get_input_embeddings().weight.dtype
    tower = tower.to(dtype)
    grow_vocabulary(llm, wanted_rows(llm.get_input_embeddings().weight.shape[0], len(tokenizer), vocabulary))
    config = LlavaConfig(
        vision_config=vision,
        text_config=llm.config,
        image_token_index=processor.image_token_id,
        image_seq_length=features(vision, record, select),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy(record, select),
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = llm.get_decoder()
    model.lm_head = llm.get_output_embeddings()
    model.model.vision_tower = tower
    model.model.multi_modal_projector = (projector or new_projector)(config, seed).to(dtype)
    model.tie_weights()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
        setattr(model.config.text_config, name, getattr(tokenizer, name))
    if ends is not None:
        model.generation_config.eos_token_id = model.config.text_config.eos_token_id = ends
    for part in (model.config, model.config.text_config, model.config.vision_config):
        part.dtype = dtype
    return model.eval()


def wanted_rows(rows: int, tokens: int, vocabulary: Vocabulary) -> int:
    """Of the embedding: never fewer than there are."""
    least = max(rows, tokens)
    return least if vocabulary == "exact" else -(-least // 64) * 64


def grow_vocabulary(llm: Any, rows: int) -> None:
    """Embedding and output matrix of `rows` rows, the new ones the mean of the old."""
    import torch

    old = llm.get_input_embeddings().weight.shape[0]
    if rows == old:
        return
    llm.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for table in {id(t.weight): t.weight for t in (llm.get_input_embeddings(), llm.get_output_embeddings())}.values():
            table[old:] = table[:old].float().mean(0).to(table.dtype)


def new_projector(config: Any, seed: int) -> Any:
    """Its weights drawn as torch draws a linear layer's, which is how LLaVA begins."""
    import torch
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaMultiModalProjector(config)


def projector_of_a_new_model(config: Any, seed: int) -> Any:
    """Its weights drawn in their turn among all those of a new model, as transformers draws them."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).model.multi_modal_projector
