"""Joins a language model and a vision tower into a LLaVA whose projector is untrained: the study's starting point."""

from __future__ import annotations

from typing import Any

from vlsafe.errors import CheckError


def assemble(llm: Any, tower: Any, processor: Any, *, feature_layer: int = -2, select: str = "default", seed: int = 0) -> Any:
    """A `LlavaForConditionalGeneration` that holds the weights of `llm` (a causal language model) and `tower`.

    `processor` is a `LlavaProcessor`; its tokenizer must have `<image>` and a padding token of its own. A language model whose
    vocabulary lacks their rows gets them, each the mean of its embeddings (as LLaVA-1.5's 32,000 became 32,064). The projector
    is drawn from `seed`. Raises `CheckError` where the tokenizer or the picture size does not fit.
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        raise CheckError("assemble: the tokenizer has no padding token; add one of its own (as LLaVA-1.5 does: '<pad>')")
    vision = tower.config
    patches = (vision.image_size // vision.patch_size) ** 2
    crop = processor.image_processor.crop_size
    if (crop["height"], crop["width"]) != (vision.image_size, vision.image_size):
        raise CheckError(
            f"assemble: the processor gives pictures of {crop['height']} × {crop['width']} and the tower takes "
            f"{vision.image_size} × {vision.image_size}; set the processor's crop_size to the tower's image_size"
        )
    rows = llm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for table in {id(t.weight): t.weight for t in (llm.get_input_embeddings(), llm.get_output_embeddings())}.values():
                table[rows:] = table[:rows].mean(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=llm.config,
        image_token_index=processor.image_token_id,
        image_seq_length=patches + (select == "full"),
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=select,
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(llm.get_decoder().state_dict())
    if not config.tie_word_embeddings:
        model.lm_head.load_state_dict(llm.get_output_embeddings().state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.tie_weights()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
        setattr(model.config.text_config, name, getattr(tokenizer, name))
    return model.eval()
