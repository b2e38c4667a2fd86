"""The checks before a phase's first step: each is a way in which training completes and has computed something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlsafe.data.encode import Encoded, Encoder, Example
from vlsafe.data.pictures import PictureError
from vlsafe.errors import CheckError
from vlsafe.model.families import family_of, feature_counts
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


def check_rendered(encoder: Encoder, encoded: Encoded, rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises `CheckError` where the chat template leaves out what is asked or answered, or writes it otherwise, seen on a row
    of each source with pictures and one without: then nothing, or something else, would be learned under a falling loss."""
    for place in {(e.source, e.pictures > 0): e.row for e in reversed(encoded.examples)}.values():
        row = rows[place]
        prompt, answers = encoder.rendered(row)
        told = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
        for messages, text in zip([row["prompt"], *told], [prompt, *answers], strict=True):
            said = [part for message in messages for part in parts(message["content"])]
            left_out = next((part for part in said if part not in text), None)
            if left_out is not None:
                what = "prompt" if messages is row["prompt"] else "answer"
                raise CheckError(
                    f"{where}: the chat template leaves out the {what} of row {place} of source '{row['source']}':"
                    f" {left_out[:60]!r} is not in what it renders, {text[-120:]!r}: save the model"
                    " with the template that it was trained with, made to take lists of parts"
                )


def parts(content: Any) -> list[str]:
    """What a message's content says, without the pictures between; templates may strip it."""
    return [text.strip() for text in ([content] if isinstance(content, str) else [part.get("text", "") for part in content])]


def check_vocabulary(model: Any, encoded: Encoded, where: str) -> None:
    """Raises `CheckError` when a row has an id that the model has no embedding for."""
    size = model.get_input_embeddings().weight.shape[0]
    top = max(max(max(e.prompt, default=0), *(max(c, default=0) for c in e.completions)) for e in encoded.examples)
    if top >= size:
        raise CheckError(
            f"{where}: token id {top} is beyond the model's {size} embeddings: processor and model do not belong together"
        )


def check_image_tokens(model: Any, encoder: Encoder, encoded: Encoded, rows: Sequence[Mapping[str, Any]], where: str) -> int:
    """The most features that the model makes of one picture, of those tried; 0 without pictures.

    Asked are the rows with the fewest and the most image tokens, and the first. Raises `CheckError` unless the model makes as
    many features of their pictures as the processor writes image tokens for them, and unless every row has the image tokens
    that its pictures need, with the model's id.
    """
    shown = [e for e in encoded.examples if e.pictures]
    if not shown:
        return 0
    expected = getattr(model.config, "image_token_id", None)
    if expected is None or expected != encoder.image_id:
        raise CheckError(f"{where}: the processor's image token has id {encoder.image_id}, the model expects {expected}")
    families = family_of(model), family_of(encoder.processor)
    if families[0] is not families[1]:
        raise CheckError(f"{where}: the model is of the family {families[0].name}, its processor of {families[1].name}")
    most = 0
    by_tokens = sorted(shown, key=lambda e: e.image_tokens)
    tried = [readable(encoder, order, rows) for order in (shown, by_tokens, by_tokens[::-1])]
    for row, pictures in {row.row: (row, pictures) for row, pictures in tried}.values():
        with computing(model):
            made = feature_counts(model, encoder.seen(pictures))
        for picture, features in zip(pictures, made, strict=True):
            tokens = encoder.image_tokens(picture.size)
            if tokens != features:
                width, height = picture.size
                raise CheckError(
                    f"{where}: row {row.row} has {tokens} image tokens, but the model makes {features} features of its picture"
                    f" of {width} × {height} pixels: what the processor knows of the tower ({families[1].tower_settings}) must"
                    " be as the model has it"
                )
            most = max(most, features)
    for row in encoded.examples:
        tokens = sum(ids.count(expected) for ids in (row.prompt, *row.completions))
        if tokens != row.image_tokens:
            raise CheckError(
                f"{where}: row {row.row} has {tokens} image tokens, and its {row.pictures} pictures need {row.image_tokens}:"
                " nothing may cut into a prompt, and the text of a row must not spell out the image token"
            )
    return most


def readable(encoder: Encoder, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> tuple[Example, list[Any]]:
    """The first of the examples whose pictures can be decoded, and these."""
    failed = ""
    for example in examples:
        try:
            return example, encoder.open(rows[example.row]["images"])
        except PictureError as error:
            failed = failed or str(error)
    raise CheckError(f"no picture of the rows can be decoded ({failed})")


def check_finite(step: int, loss: float, grad_norm: float, where: str) -> None:
    """Raises `CheckError` for a loss or gradient that is no number."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        undefined = name == "gradient norm" and value < 0  # DeepSpeed's -1
        if value != value or abs(value) == float("inf") or undefined:
            raise CheckError(f"{where}: the {name} of step {step} is {value}: lower learning_rate or raise warmup_steps")
