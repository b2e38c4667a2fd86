"""The check that an answer does not depend on its batch, on the shortest and the longest prompt of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlsafe.errors import CheckError
from vlsafe.eval import decoding
from vlsafe.eval.base import Item

PROBE_TOKENS = 3
# Logits of one prompt alone and of the same prompt in a batch differ by rounding; by more than this share of their spread, the
# model sees something else.
LOGIT_TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def probe(session: decoding.Session, prompts: Sequence[decoding.Prompt], items: Sequence[Item]) -> dict[str, Any]:
    """The shortest and the longest prompt, alone and in one batch: the first new tokens must be the same, rounding apart.
    Raises `CheckError` with the item's name otherwise, and where the logits are not finite."""
    checked = 0
    for group in ([p for p in prompts if p.picture], [p for p in prompts if not p.picture]):
        ordered = sorted(group, key=lambda p: (p.length, p.index))
        sample = ordered[:1] + ordered[1:][-1:]
        if not sample:
            continue
        together_ids, together = _first_logits(session, sample, items)
        for row, prompt in enumerate(sample):
            alone_ids, alone = _first_logits(session, [prompt], items)
            _compare(session, items[prompt.index].id, (alone_ids[0], alone[0]), (together_ids[row], together[row]))
            checked += 1
    return {"items": checked, "tokens": PROBE_TOKENS}


def _first_logits(
    session: decoding.Session, batch: Sequence[decoding.Prompt], items: Sequence[Item]
) -> tuple[list[list[int]], Any]:
    """The first new tokens of each row, and their logits of shape (batch, tokens, vocabulary) in float32."""
    inputs, _ = decoding.encode(session, batch, items)
    with torch.inference_mode():
        output = session.model.generate(**inputs, max_new_tokens=PROBE_TOKENS, output_logits=True, return_dict_in_generate=True)
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return tokens, torch.stack(output.logits, dim=1).float()


def _compare(session: decoding.Session, item: str, alone: tuple[list[int], Any], together: tuple[list[int], Any]) -> None:
    """Step by step as long as both said the same so far."""
    for step, (a, b) in enumerate(zip(alone[0], together[0], strict=False)):
        one, many = alone[1][step], together[1][step]
        if not one.isfinite().all():
            raise CheckError(
                f"item {item}: the model's logits are not finite: its weights are broken (a merge or a training diverged)"
            )
        tolerance = LOGIT_TOLERANCE.get(session.model.dtype, 2e-1)
        gap = (one - many).abs().max().item()
        spread = (one.max() - one.min()).item()
        if not gap <= tolerance * max(spread, 1e-6):
            raise CheckError(
                f"item {item}: its answer depends on the batch (logits of new token {step} move by {gap:.3g}, of a spread of "
                f"{spread:.3g}): padding side or positions are wrong for this model; set engine.batch_size=1"
            )
        if a != b:
            return  # an even race that rounding decided
