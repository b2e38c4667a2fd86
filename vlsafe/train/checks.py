"""The checks before a phase's first step: each is a way in which training completes and has computed something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsafe.data.encode import Encoded, Encoder
from vlsafe.errors import CheckError
from vlsafe.train.dtypes import computing


def check_supervised(encoded: Encoded, where: str) -> None:
    """Raises `CheckError` when rows are missing, or a source has no supervised token (LLaVA #779: loss 0.0)."""
    if not encoded.examples:
        dropped = sum(encoded.dropped.values())
        raise CheckError(f"{where}: no rows to train on ({dropped} were longer than the limit)")
    for source in {e.source for e in encoded.examples} | set(encoded.dropped):
        if not encoded.supervised[source]:
            why = f" ({encoded.dropped[source]} rows were too long and dropped)" if encoded.dropped[source] else ""
            raise CheckError(f"{where}: source '{source}' has no supervised token{why}: look at its rows and the chat template")


def check_vocabulary(model: Any, encoded: Encoded, where: str) -> None:
    """Raises `CheckError` when a row has an id that the model has no embedding for."""
    size = model.get_input_embeddings().weight.shape[0]
    top = max(max(max(e.prompt, default=0), *(max(c, default=0) for c in e.completions)) for e in encoded.examples)
    if top >= size:
        raise CheckError(
            f"{where}: token id {top} is beyond the model's {size} embeddings: processor and model do not belong together"
        )


def check_image_tokens(model: Any, encoder: Encoder, encoded: Encoded, rows: Sequence[Mapping[str, Any]], where: str) -> int:
    """The number of features that the model makes of one picture; 0 without pictures.

    Raises `CheckError` unless every row has that many image tokens for each of its pictures, and they have the model's id.
    """
    import torch

    first = next((e for e in encoded.examples if e.pictures), None)
    if first is None:
        return 0
    expected = getattr(model.config, "image_token_id", None)
    if expected is None or expected != encoder.image_id:
        raise CheckError(f"{where}: the processor's image token has id {encoder.image_id}, the model expects {expected}")
    pixels = encoder.pictures(rows[first.row]["images"][:1], return_tensors="pt")["pixel_values"]  # type: ignore[misc]
    with torch.no_grad(), computing(model):
        found = model.get_image_features(pixels.to(model.device, model.dtype)).pooler_output
    features = int(found[0].shape[0])
    for example in encoded.examples:
        tokens = example.prompt.count(expected)
        if tokens != features * example.pictures:
            raise CheckError(
                f"{where}: row {example.row} has {tokens} image tokens, but the model makes {features} features of each of its"
                f" {example.pictures} pictures: the processor's patch_size, vision_feature_select_strategy and"
                " num_additional_image_tokens must be those of the model"
            )
    return features


def check_finite(step: int, loss: float, grad_norm: float, where: str) -> None:
    """Raises `CheckError` for a loss or gradient that is no number."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        undefined = name == "gradient norm" and value < 0  # DeepSpeed's -1
        if value != value or abs(value) == float("inf") or undefined:
            raise CheckError(f"{where}: the {name} of step {step} is {value}: lower learning_rate or raise warmup_steps")
