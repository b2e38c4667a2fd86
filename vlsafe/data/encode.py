"""Rows to token ids, once per row.

The prompt is what evaluation will show the model: the chat template with the generation prompt. The completion is what the
template adds to it up to its end token, and every token of it is supervised; nothing else is. Nothing is cut off: a row over
the model's limit is dropped and counted.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlsafe.errors import CheckError

log = logging.getLogger(__name__)
CHUNK = 512  # rows tokenised at a time
KEPT_BYTES = 128 * 2**20  # pictures kept in memory between encoding and use; the rest is asked of the rows again


@dataclass(frozen=True)
class Example:
    """One row as ids. `completions` has one list for a supervised or labelled row; chosen and rejected for a pair."""

    row: int
    source: str
    prompt: array[int]
    completions: tuple[array[int], ...]
    pictures: int
    kept: list[Any] | None = None  # the pictures themselves, as long as they are few
    label: bool | None = None  # of a labelled row


@dataclass
class Encoded:
    """All rows of a phase, and what was counted on the way."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # rows over the model's limit, by source
    supervised: Counter[str] = field(default_factory=Counter)  # supervised tokens, by source
    tokens: Counter[str] = field(default_factory=Counter)  # all tokens, by source
    end_token: str = ""  # "template" or "appended": who ends the answer


class Encoder:
    """A processor (or a plain tokenizer) with what has to be known about it to make ids from messages."""

    def __init__(self, processor: Any, limit: int | None = None) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.pictures = getattr(processor, "image_processor", None)
        self.limit = limit
        self.image_id: int | None = getattr(processor, "image_token_id", None) if self.pictures else None
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if end is None:
            raise CheckError("the tokenizer has no eos_token: set one, or the model never learns to stop")
        self.pad_id: int = end if pad is None else pad
        self._kept_bytes = 0
        self._tokens_of_size: dict[tuple[int, int], int] = {}

    def encode(self, rows: Sequence[Mapping[str, Any]], tick: Callable[[int], None] = lambda done: None) -> Encoded:
        """All rows, in their order; `tick(rows done)` is called now and then.

        Raises `CheckError` for a template that renders the prompt otherwise when an answer follows, and for a row whose
        pictures and image tokens differ in number."""
        result = Encoded()
        for start in range(0, len(rows), CHUNK):
            chunk = [rows[i] for i in range(start, min(start + CHUNK, len(rows)))]
            self._encode_chunk(chunk, start, result)
            tick(start + len(chunk))
        if sum(result.dropped.values()):
            log.warning("rows longer than the model's %s tokens were dropped: %s", self.limit, dict(result.dropped))
        return result

    def _encode_chunk(self, rows: list[Mapping[str, Any]], start: int, result: Encoded) -> None:
        names = ("completion",) if "completion" in rows[0] else ("chosen", "rejected")
        asked = self._texts([row["prompt"] for row in rows], answer=False)
        told = [self._texts([[*row["prompt"], *row[name]] for row in rows], answer=True) for name in names]
        prompts, answers = self._ids(asked), [self._ids(self._ended(asked, texts, result)) for texts in told]
        for i, row in enumerate(rows):
            expand = self._image_tokens(row, start + i)
            prompt = self._expanded(prompts[i], expand, start + i)
            completions = []
            for whole in answers:
                if whole[i][: len(prompts[i])] != prompts[i]:
                    raise self._no_prefix(prompts[i], whole[i], start + i)
                completions.append(whole[i][len(prompts[i]) :])
            source = row["source"]
            if self.limit is not None and len(prompt) + max(map(len, completions)) > self.limit:
                result.dropped[source] += 1
                continue
            result.supervised[source] += sum(map(len, completions))
            result.tokens[source] += sum(len(prompt) + len(c) for c in completions)
            kept, ended = self._keep(row["images"]), tuple(array("i", c) for c in completions)
            example = Example(start + i, source, array("i", prompt), ended, len(expand), kept, row.get("label"))
            result.examples.append(example)

    def rendered(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        """What the template makes of a row: the prompt, and what it adds for each of the answers."""
        names = ("completion",) if "completion" in row else ("chosen", "rejected")
        (asked,) = self._texts([row["prompt"]], answer=False)
        return asked, [text[len(asked) :] for text in self._texts([[*row["prompt"], *row[n]] for n in names], answer=True)]

    def _keep(self, pictures: list[Any]) -> list[Any] | None:
        self._kept_bytes += sum(3 * p.size[0] * p.size[1] + 1024 for p in pictures)
        return pictures if self._kept_bytes <= KEPT_BYTES else None

    def _texts(self, conversations: list[Any], answer: bool) -> list[str]:
        if self.pictures is None:
            conversations = [[{**m, "content": plain(m["content"])} for m in c] for c in conversations]
        return list(self.processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=not answer))

    def _ended(self, asked: list[str], told: list[str], result: Encoded) -> list[str]:
        """Answers that end with the end token: some templates (LLaVA-1.5's) write none, and the model would never learn to
        stop; others write a line break after it, which the model is never asked for."""
        end = self.tokenizer.eos_token
        bodies = [text[len(prompt) :].rstrip() for prompt, text in zip(asked, told, strict=True)]
        ended = [body.endswith(end) for body in bodies]
        result.end_token = result.end_token or ("template" if all(ended) else "appended")
        return [
            text[: len(prompt)] + body + ("" if there else end)
            for prompt, text, body, there in zip(asked, told, bodies, ended, strict=True)
        ]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        bos = self.tokenizer.bos_token
        # As apply_chat_template(tokenize=True) does: a tokenizer's own adds nothing, a processor's what the template left out.
        special = self.pictures is not None and not (bos and texts[0].startswith(bos))
        return list(self.tokenizer(texts, add_special_tokens=special)["input_ids"])

    def _image_tokens(self, row: Mapping[str, Any], where: int) -> list[int]:
        """The number of image tokens for each picture of the row."""
        pictures = row["images"]
        if pictures and self.pictures is None:
            raise CheckError(f"row {where} of source '{row['source']}' has a picture, and the model is a plain language model")
        counts = []
        for picture in pictures:
            if picture.size not in self._tokens_of_size:
                ids = self.processor(images=[picture], text=[self.processor.image_token])["input_ids"][0]
                self._tokens_of_size[picture.size] = sum(1 for token in ids if token == self.image_id)
            counts.append(self._tokens_of_size[picture.size])
        return counts

    def _expanded(self, ids: list[int], counts: list[int], where: int) -> list[int]:
        places = [i for i, token in enumerate(ids) if token == self.image_id] if self.image_id is not None else []
        if len(places) != len(counts):
            raise CheckError(
                f"row {where}: its prompt shows {len(places)} pictures and it brings {len(counts)}: the chat template must"
                f" write one image token for each {{'type': 'image'}} part"
            )
        for place, count in zip(reversed(places), reversed(counts), strict=True):
            ids = ids[:place] + [ids[place]] * count + ids[place + 1 :]
        return ids

    def _no_prefix(self, prompt: list[int], whole: list[int], where: int) -> CheckError:
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        text = self.tokenizer.decode
        return CheckError(
            f"row {where}: the chat template renders the prompt otherwise when an answer follows: after"
            f" {text(prompt[:same])[-60:]!r} the prompt has {text(prompt[same:])!r}, with the answer"
            f" {text(whole[same:])[:60]!r}; the model would be trained on another prompt than it is asked:"
            " use a chat template whose generation prompt begins the answer's turn"
        )


def plain(content: Any) -> str:
    """A message's parts as text, for the templates of plain language models."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
