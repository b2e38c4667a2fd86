"""The checks before a phase's first step: each is a way in which training completes and has computed something else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlsafe.data.encode import Encoded, Encoder
from vlsafe.data.pictures import PictureError
from vlsafe.data.turns import called
from vlsafe.errors import CheckError
from vlsafe.model.families import family_of, feature_counts
from vlsafe.train.dtypes import computing


def check_supervised(encoded: Encoded, where: str) -> None:
    """Raises `CheckError` when rows are missing, or a source has no supervised token (LLaVA #779: loss 0.0)."""
    if not encoded.examples:
        dropped = sum(encoded.dropped.values())
        raise CheckError(f"{where}: no rows to train on ({dropped} were longer than the limit)")
    for source in sorted({*encoded.examples.sources, *encoded.dropped}):
        if not encoded.supervised[source]:
            why = f" ({encoded.dropped[source]} rows were too long and dropped)" if encoded.dropped[source] else ""
            raise CheckError(f"{where}: source '{source}' has no supervised token{why}: look at its rows and the chat template")


def check_rendered(encoder: Encoder, encoded: Encoded, rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises `CheckError` where the chat template leaves out what is asked or answered, or writes it otherwise, seen on a row
    of each source with pictures and one without: then nothing, or something else, would be learned under a falling loss."""
    examples = encoded.examples
    kinds = list(zip(examples.sources, examples.pictured, examples.column("row").tolist(), strict=True))
    for place in {(source, pictured): row for source, pictured, row in reversed(kinds)}.values():
        row = rows[place]
        prompt, answers = encoder.rendered(row)
        told = [row[name] for name in ("completion", "chosen", "rejected") if name in row]
        for messages, text in zip([row["prompt"], *told], [prompt, *answers], strict=True):
            said = [part for message in messages for part in parts(message["content"])]
            left_out = next((part for part in said if part not in text), None)
            if left_out is not None:
                what = "prompt" if messages is row["prompt"] else "answer"
                raise CheckError(
                    f"{where}: the chat template leaves out the {what} of {called(row, place)}:"
                    f" {left_out[:60]!r} is not in what it renders, {text[-120:]!r}: save the model"
                    " with the template that it was trained with, made to take lists of parts"
                )


def parts(content: Any) -> list[str]:
    """What a message's content says, without the pictures between; templates may strip it."""
    return [text.strip() for text in ([content] if isinstance(content, str) else [part.get("text", "") for part in content])]


def check_vocabulary(model: Any, encoded: Encoded, where: str) -> None:
    """Raises `CheckError` when a row has an id that the model has no embedding for."""
    size = model.get_input_embeddings().weight.shape[0]
    top = int(encoded.examples.column("top").max())
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
    examples, numbers = encoded.examples, encoded.examples.column("image_tokens").tolist()
    shown = [i for i, pictured in enumerate(examples.pictured) if pictured]
    if not shown:
        return 0
    expected = getattr(model.config, "image_token_id", None)
    if expected is None or expected != encoder.image_id:
        raise CheckError(f"{where}: the processor's image token has id {encoder.image_id}, the model expects {expected}")
    families = family_of(model), family_of(encoder.processor)
    if families[0] is not families[1]:
        raise CheckError(f"{where}: the model is of the family {families[0].name}, its processor of {families[1].name}")
    most = 0
    places, by_tokens = examples.column("row").tolist(), sorted(shown, key=numbers.__getitem__)
    tried = [readable(encoder, (places[i] for i in order), rows) for order in (shown, by_tokens, by_tokens[::-1])]
    for place, pictures in dict(tried).items():
        with computing(model):
            made = feature_counts(model, encoder.seen(pictures))
        for picture, features in zip(pictures, made, strict=True):
            tokens = encoder.image_tokens(picture.size)
            if tokens != features:
                width, height = picture.size
                raise CheckError(
                    f"{where}: {called(rows[place], place)} has {tokens} image tokens, but the model makes {features}"
                    f" features of its picture of {width} × {height} pixels: what the processor knows of the tower"
                    f" ({families[1].tower_settings}) must"
                    " be as the model has it"
                )
            most = max(most, features)
    for place, tokens, pictures, needed in zip(
        places, examples.column("shown").tolist(), examples.column("pictures").tolist(), numbers, strict=True
    ):
        if tokens != needed:
            raise CheckError(
                f"{where}: {called(rows[place], place)} has {tokens} image tokens, and its {pictures} pictures need {needed}:"
                " nothing may cut into a prompt, and the text of a row must not spell out the image token"
            )
    return most


def readable(encoder: Encoder, places: Iterable[int], rows: Sequence[Mapping[str, Any]]) -> tuple[int, list[Any]]:
    """The first of the rows at `places` whose pictures can be decoded, and these."""
    failed = ""
    for place in places:
        try:
            return place, encoder.open(rows[place]["images"])
        except PictureError as error:
            failed = failed or str(error)
    raise CheckError(f"no picture of the rows can be decoded ({failed})")


def check_finite(step: int, loss: float, grad_norm: float, where: str) -> None:
    """Raises `CheckError` for a loss or gradient that is no number."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        undefined = name == "gradient norm" and value < 0  # DeepSpeed's -1
        if value != value or abs(value) == float("inf") or undefined:
            raise CheckError(f"{where}: the {name} of step {step} is {value}: lower learning_rate or raise warmup_steps")
