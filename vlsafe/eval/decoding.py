"""Greedy answers of a vision-language model with `transformers`: prompts, batches, and the checks that come before them.

Prompts are padded on the left and grouped by length; the answer to an item does not depend on its batch. That is checked on
a probe, because it fails silently where a padding side or a position is wrong (LLaVA-1.5 lost 11 points on ScienceQA that way).
"""

from __future__ import annotations

import functools
import gc
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlsafe.data.pictures import mean_colour, pad_to_square
from vlsafe.errors import CheckError, StageInterrupted
from vlsafe.eval.base import Item
from vlsafe.eval.checks import check_ids, check_room, check_said
from vlsafe.eval.engines import Answer, Dtype
from vlsafe.files import read_json
from vlsafe.model.families import blank_picture, family_of, feature_counts, on_device
from vlsafe.stage import Execution

if TYPE_CHECKING:
    from vlsafe.eval.engines import HfEngine


@dataclass(frozen=True)
class Session:
    """A loaded model, kept for the next stage that asks it."""

    model: Any
    processor: Any
    device: str
    template_hash: str
    features: dict[Any, int] = field(default_factory=dict)  # made of a picture, by the shape that it is given in


@dataclass(frozen=True)
class Prompt:
    """A rendered item: `text` with one image token for the picture, before it is expanded."""

    index: int
    text: str
    length: int
    picture: Callable[[], Any] | None


_opened: dict[tuple[Path, str, int, str], Session] = {}  # one at most: all of a model's benchmarks are asked one after another


def open_model(folder: Path, where: Execution, dtype: Dtype = "stored") -> Session:
    """The model in `folder`, loaded unless it was the last to be opened. The one before is let go first: two may not fit."""
    from vlsafe.model.load import pick_device

    device = str(pick_device(where.device))
    at = (folder.absolute(), device, (folder / "config.json").stat().st_mtime_ns, dtype)
    if at not in _opened:
        _opened.clear()
        _opened[at] = _load(folder, device, None if dtype == "stored" else dtype)
    return _opened[at]


def close() -> None:
    """Lets go of the model, and of the GPU's memory that it had."""
    if _opened:
        _opened.clear()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def make_greedy(model: Any, tokenizer: Any, where: str, **more: Any) -> None:
    """Nothing of a model's own generation settings (a temperature, a repetition penalty) stays but its end-of-text tokens: it
    would be merged into ours, and change the scores. Raises `CheckError` where there is none."""
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise CheckError(f"{where}: neither tokenizer nor generation_config.json names an end-of-text token: set eos_token_id")
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, eos_token_id=ends, pad_token_id=pad, **more
    )


def _load(folder: Path, device: str, dtype: str | None) -> Session:
    from vlsafe.model.load import load_model, load_processor, template_hash

    model, processor = load_model(folder, device, dtype), load_processor(folder)
    if not hasattr(processor, "image_processor"):
        raise CheckError(f"{folder}: holds no image processor, so it is no vision-language model: engine=hf can't ask it")
    if family_of(model) is not family_of(processor):
        raise CheckError(
            f"{folder}: holds a {type(model).__name__} and a {type(processor).__name__}: they don't belong together"
        )
    make_greedy(model, processor.tokenizer, str(folder))
    return Session(model, processor, device, template_hash(processor))


def picture_hash(picture: Any) -> str:
    """SHA-256 of the size and the RGB pixels."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def answer_items(
    engine: HfEngine,
    folder: Path,
    items: Sequence[Item],
    on_answer: Callable[[int, Answer], None],
    where: Execution,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """See `Engine.answer`."""
    from vlsafe.eval.probe import probe

    torch.set_num_threads(where.threads)
    session = open_model(folder, where, engine.dtype)
    check_template(session, folder)
    prompts = render(engine, session, items)
    facts: dict[str, Any] = {
        "template_hash": session.template_hash,
        "decoding": {
            "engine": "hf",
            "greedy": True,
            "max_new_tokens": engine.max_new_tokens,
            "system_prompt": engine.system_prompt,
        },
        "text_image": engine.text_image,
        "pad_to_square": engine.pad_to_square,
        "batch_size": engine.batch_size,
        "device": session.device,
        "dtype": str(session.model.dtype).removeprefix("torch."),
        "probe": probe(session, prompts, items),
    }
    tokens, started = 0, time.perf_counter()
    for batch in batches(prompts, engine.batch_size):
        if should_stop():
            raise StageInterrupted(
                "generation was stopped: the answers so far are kept, and the same command goes on from there"
            )
        for prompt, answer in zip(batch, ask_in_parts(session, batch, items, engine.max_new_tokens), strict=True):
            tokens += answer.new_tokens
            on_answer(prompt.index, answer)
    seconds = time.perf_counter() - started
    return facts | {"new_tokens": tokens, "new_tokens_per_second": round(tokens / seconds, 1) if tokens else 0.0}


def batched_items(engine: HfEngine, folder: Path, items: Sequence[Item], where: Execution) -> list[list[int]]:
    """See `Engine.batches`. Some of these, in item order, are batched as they are here: answers are the same bits."""
    prompts = render(engine, open_model(folder, where, engine.dtype), items)
    return [[prompt.index for prompt in batch] for batch in batches(prompts, engine.batch_size)]


def render(engine: HfEngine, session: Session, items: Sequence[Item]) -> list[Prompt]:
    """The items through the chat template, in their order. Raises `CheckError` unless each picture is shown once."""
    token, prompts = session.processor.image_token, []
    blank = functools.partial(blank_picture, session.processor) if engine.text_image == "blank_image" else None
    for index, item in enumerate(items):
        picture = item.image or blank
        if engine.pad_to_square and item.image is not None:
            picture = functools.partial(in_a_square, item.image, session.processor.image_processor)
        parts: list[dict[str, str]] = [{"type": "image"}] if picture else []
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": item.prompt}]}]
        if engine.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": engine.system_prompt}]})
        text = session.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if text.count(token) != len(parts):
            raise CheckError(
                f"item {item.id}: its prompt shows {text.count(token)} '{token}' for {len(parts)} pictures; the template must "
                "show a picture once, and the text of a prompt must not spell out the image token"
            )
        check_said(item, engine.system_prompt, text)
        prompts.append(Prompt(index, text, 0, picture))
    ids = session.processor.tokenizer([p.text for p in prompts])["input_ids"] if prompts else []
    check_ids(session.model, items, ids)
    return [Prompt(p.index, p.text, len(of), p.picture) for p, of in zip(prompts, ids, strict=True)]


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Prompts of similar length together, pictures apart from plain text; the longest first, to run out of memory soon."""
    ordered = sorted(prompts, key=lambda p: (p.picture is None, -p.length, p.index))
    groups = [[p for p in ordered if p.picture is not None], [p for p in ordered if p.picture is None]]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def encode(session: Session, batch: Sequence[Prompt], items: Sequence[Item]) -> tuple[Any, list[str]]:
    """Model inputs, padded on the left, and the hash of each picture. Raises `CheckError` where a prompt's image tokens are not
    as many as its picture's image features."""
    pictures = [p.picture() for p in batch if p.picture is not None]
    bos = session.processor.tokenizer.bos_token
    inputs = session.processor(
        text=[p.text for p in batch],
        images=pictures or None,
        add_special_tokens=not (bos and batch[0].text.startswith(bos)),
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    counts = (inputs["input_ids"] == session.model.config.image_token_id).sum(-1).tolist()
    features = iter(_count_features(session, inputs) if pictures else [])
    for prompt, count in zip(batch, counts, strict=True):
        wanted = next(features) if prompt.picture else 0
        if count != wanted:
            raise CheckError(
                f"item {items[prompt.index].id}: {count} image tokens for {wanted} image features; the processor's "
                f"{family_of(session.processor).tower_settings} must be the tower's, and nothing may cut into a prompt"
            )
    hashes = iter([picture_hash(picture) for picture in pictures])
    return on_device(inputs, session.device, session.model.dtype), [next(hashes) if p.picture else "" for p in batch]


def _count_features(session: Session, inputs: Mapping[str, Any]) -> list[int]:
    """Of each picture of a batch; the tower is asked once for each shape."""
    family = family_of(session.processor)
    pictures = family.pictures(inputs)
    shapes = family.shapes(pictures)
    if any(shape not in session.features for shape in shapes):
        session.features.update(zip(shapes, feature_counts(session.model, pictures), strict=True))
    return [session.features[shape] for shape in shapes]


def ask(session: Session, batch: Sequence[Prompt], items: Sequence[Item], max_new_tokens: int) -> list[Answer]:
    inputs, hashes = encode(session, batch, items)
    check_room(session.model, items[batch[0].index], inputs["input_ids"].shape[1], max_new_tokens)
    with torch.inference_mode():
        output = session.model.generate(**inputs, max_new_tokens=max_new_tokens)
    new = output[:, inputs["input_ids"].shape[1] :].tolist()
    ends = session.model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    answers = []
    for row, picture in zip(new, hashes, strict=True):
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        kept = row if stop is None else row[:stop]
        text = session.processor.tokenizer.decode(kept, skip_special_tokens=True).strip()
        answers.append(Answer(text, picture, len(kept), stop is None))
    return answers


def ask_in_parts(session: Session, batch: Sequence[Prompt], items: Sequence[Item], max_new_tokens: int) -> list[Answer]:
    """`ask`, half a batch at a time where the whole does not fit in the GPU's memory: answers do not depend on it."""
    try:
        return ask(session, batch, items, max_new_tokens)
    except torch.cuda.OutOfMemoryError as error:
        if len(batch) == 1:
            raise CheckError(
                f"item {items[batch[0].index].id}: its answer alone does not fit in the GPU's memory: lower"
                " engine.max_new_tokens, or use a larger GPU"
            ) from error
    torch.cuda.empty_cache()
    half = len(batch) // 2
    parts = (batch[:half], batch[half:])
    return [answer for part in parts for answer in ask_in_parts(session, part, items, max_new_tokens)]


def in_a_square(picture: Callable[[], Any], image_processor: Any) -> Any:
    return pad_to_square(picture().convert("RGB"), mean_colour(image_processor))


def check_template(session: Session, folder: Path) -> None:
    """Raises `CheckError` where the model was trained under another chat template than the one in its folder."""
    manifest = folder / "manifest.json"
    trained = read_json(manifest).get("facts", {}).get("template_hash") if manifest.is_file() else None
    if trained is not None and trained != session.template_hash:
        raise CheckError(
            f"{folder}: trained under chat template {trained[:12]}, but its processor holds {session.template_hash[:12]}: "
            "answers would measure the template; restore the processor that the model was trained with"
        )
