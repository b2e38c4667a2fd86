"""The checks before a model is asked: each is a way in which it would be asked something else, and answer all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.eval.base import Item


def check_said(item: Item, system_prompt: str | None, text: str) -> None:
    """Raises `CheckError` where the chat template leaves out the item's prompt or the system prompt, or writes it otherwise."""
    for said, what in ((item.prompt, "prompt"), (system_prompt or "", "system prompt")):
        if said.strip() not in text:
            raise CheckError(
                f"item {item.id}: the chat template leaves out its {what}, {said.strip()[:60]!r}: it renders {text[-120:]!r};"
                " save the model with the template that it was trained with, made to take lists of parts"
            )


def check_ids(model: Any, items: Sequence[Item], prompts: Sequence[Sequence[int]]) -> None:
    """Raises `CheckError` where a prompt has an id that the model has no embedding for."""
    size = model.get_input_embeddings().weight.shape[0]
    for item, ids in zip(items, prompts, strict=True):
        if max(ids, default=0) >= size:
            raise CheckError(
                f"item {item.id}: token id {max(ids)} is beyond the model's {size} embeddings: processor and model do not"
                " belong together"
            )


def check_room(model: Any, item: Item, tokens: int, new_tokens: int) -> None:
    """Raises `CheckError` where a prompt of so many tokens and its answer are more than the model was made for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens + new_tokens > limit:
        raise CheckError(
            f"item {item.id}: {tokens} tokens and {new_tokens} for the answer are more than the model's {limit}, and nothing is"
            " cut: lower engine.max_new_tokens, or leave the item out (eval.limit)"
        )
