"""Rows to token ids, once per row.

The prompt is what evaluation will show the model: the chat template with the generation prompt. The completion is what the
template adds to it, and every token of the assistant's turns in it, until their end token, is supervised; nothing else is.
Nothing is cut off: a row over the limit is dropped and counted. A row whose picture can't be read is left out, counted and
named.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlsafe.data.pictures import PictureError, mean_colour, opened, weight
from vlsafe.data.turns import between, marks, prefixes
from vlsafe.errors import CheckError
from vlsafe.model.families import Family, Size, family_of

log = logging.getLogger(__name__)
CHUNK = 512  # rows tokenised at a time
MOST_BROKEN = 0.01  # share of the rows that may be left out, where their source says nothing else
NAMED = 100  # the most rows left out that are named, by source; the counts are always of all
KEPT_BYTES = 128 * 2**20  # pictures kept in memory between encoding and use; the rest is asked of the rows again


@dataclass(frozen=True)
class Example:
    """One row as ids. `completions` has one list for a supervised or labelled row; chosen and rejected for a pair."""

    row: int
    source: str
    prompt: array[int]
    completions: tuple[array[int], ...]
    pictures: int
    image_tokens: int  # what its pictures need, and its prompt has
    kept: list[Any] | None = None  # the pictures themselves, as long as they are few
    label: bool | None = None  # of a labelled row
    asked: tuple[tuple[tuple[int, int], ...], ...] = ()  # ranges of each completion that are not the assistant's


@dataclass
class Encoded:
    """All rows of a phase, and what was counted on the way."""

    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # rows over the limit, by source
    supervised: Counter[str] = field(default_factory=Counter)  # supervised tokens, by source
    tokens: Counter[str] = field(default_factory=Counter)  # all tokens, by source
    broken: Counter[str] = field(default_factory=Counter)  # rows left out since they can't be shown, by source
    named: dict[str, list[str]] = field(default_factory=dict)  # the first of these, and why
    end_token: str = ""  # "template" or "appended": who ends the answer


class Encoder:
    """A processor (or a plain tokenizer) with what has to be known about it to make ids from messages."""

    def __init__(self, processor: Any, limit: int | None = None) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.pictures = getattr(processor, "image_processor", None)
        self.family: Family | None = family_of(processor) if self.pictures else None
        self.limit = limit
        self.colour = mean_colour(self.pictures)  # of padding
        self.image_id: int | None = getattr(processor, "image_token_id", None) if self.pictures else None
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if end is None:
            raise CheckError("the tokenizer has no eos_token: set one, or the model never learns to stop")
        self.pad_id: int = end if pad is None else pad
        self._kept_bytes = 0
        self._tokens_of_size: dict[Size, int] = {}

    def encode(self, rows: Sequence[Mapping[str, Any]], tick: Callable[[int], None] = lambda done: None) -> Encoded:
        """All rows, in their order; `tick(rows done)` is called now and then.

        Raises `CheckError` for a template that renders the prompt otherwise when an answer follows, for a row whose pictures
        and image tokens differ in number, and where more rows can't be shown than the share `rows.most_broken`."""
        most = getattr(rows, "most_broken", MOST_BROKEN)
        result = Encoded()
        for start in range(0, len(rows), CHUNK):
            chunk = [rows[i] for i in range(start, min(start + CHUNK, len(rows)))]
            self._encode_chunk(chunk, start, result)
            check_broken(result.broken, result.named, len(rows), most)
            tick(start + len(chunk))
        if sum(result.dropped.values()):
            log.warning("rows longer than %s tokens were dropped: %s", self.limit, dict(result.dropped))
        return result

    def _encode_chunk(self, rows: list[Mapping[str, Any]], start: int, result: Encoded) -> None:
        names = ("completion",) if "completion" in rows[0] else ("chosen", "rejected")
        turns = [[prefixes(row["prompt"], row[name]) for name in names] for row in rows]
        asked = iter(self._texts([until for row in turns for side in row for until, _ in side], answer=False))
        told = iter(self._texts([answered for row in turns for side in row for _, answered in side], answer=True))
        cuts: list[list[list[str]]] = []
        for i, sides_of in enumerate(turns):
            cuts.append([])
            for side in sides_of:
                cut, by_template = marks(
                    [next(asked) for _ in side], [next(told) for _ in side], self.tokenizer.eos_token, f"row {start + i}"
                )
                result.end_token = result.end_token or ("template" if by_template else "appended")
                cuts[-1].append(cut)
        ids = iter(self._ids([text for row_cuts in cuts for cut in row_cuts for text in cut]))
        for i, row in enumerate(rows):
            sides = [[next(ids) for _ in cut] for cut in cuts[i]]
            try:
                self._add(row, start + i, sides, result)
            except PictureError as error:
                result.broken[row["source"]] += 1
                named = result.named.setdefault(row["source"], [])
                if len(named) < NAMED:
                    named.append(f"{row.get('id', start + i)}: {error}")

    def _add(self, row: Mapping[str, Any], where: int, sides: list[list[list[int]]], result: Encoded) -> None:
        """One row; `sides` has for each completion the ids until each mark, the last being the whole."""
        expand = self._image_tokens(row, where)
        completions, unlearned, prompt = [], [], array("i")
        for cut in sides:
            whole = cut[-1]
            for part in cut[:-1]:
                if whole[: len(part)] != part:
                    raise self._no_prefix(part, whole, where)
            places = self._places(row, whole, expand, where)
            bounds = [len(part) + sum(n - 1 for place, n in places if place < len(part)) for part in cut]
            full = expanded(whole, places)
            prompt = array("i", full[: bounds[0]])
            completions.append(array("i", full[bounds[0] :]))
            unlearned.append(between(bounds))
        source = row["source"]
        if self.limit is not None and len(prompt) + max(map(len, completions)) > self.limit:
            result.dropped[source] += 1
            return
        result.supervised[source] += sum(map(len, completions)) - sum(b - a for side in unlearned for a, b in side)
        result.tokens[source] += sum(len(prompt) + len(c) for c in completions)
        kept, asked = self._keep(row["images"]), tuple(unlearned) if any(unlearned) else ()
        result.examples.append(
            Example(where, source, prompt, tuple(completions), len(expand), sum(expand), kept, row.get("label"), asked)
        )

    def rendered(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        """What the template makes of a row: the prompt, and what it adds for each of the answers."""
        names = ("completion",) if "completion" in row else ("chosen", "rejected")
        (asked,) = self._texts([row["prompt"]], answer=False)
        return asked, [text[len(asked) :] for text in self._texts([[*row["prompt"], *row[n]] for n in names], answer=True)]

    def _keep(self, pictures: list[Any]) -> list[Any] | None:
        self._kept_bytes += sum(map(weight, pictures))
        return pictures if self._kept_bytes <= KEPT_BYTES else None

    def _texts(self, conversations: list[Any], answer: bool) -> list[str]:
        if self.pictures is None:
            conversations = [[{**m, "content": plain(m["content"])} for m in c] for c in conversations]
        return list(self.processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=not answer))

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
        return [self.image_tokens(picture.size) for picture in pictures]

    def image_tokens(self, size: Size) -> int:
        """Of one picture of that size."""
        if size not in self._tokens_of_size:
            self._tokens_of_size[size] = family_of(self.processor).image_tokens(self.processor, size)
        return self._tokens_of_size[size]

    def seen(self, pictures: Sequence[Any]) -> dict[str, Any]:
        """What the model is given of pictures."""
        return family_of(self.processor).pictures(self.processor.image_processor(list(pictures), return_tensors="pt"))

    def _places(self, row: Mapping[str, Any], ids: list[int], counts: list[int], where: int) -> list[tuple[int, int]]:
        """Where each picture's one token stands, and how many it becomes."""
        places = [i for i, token in enumerate(ids) if token == self.image_id] if self.image_id is not None else []
        if len(places) != len(counts):
            if self.image_id is not None and any(self.processor.image_token in text for text in said(row)):
                raise PictureError(f"its text holds the model's sign for a picture, {self.processor.image_token}")
            raise CheckError(
                f"row {where}: its prompt shows {len(places)} pictures and it brings {len(counts)}: the chat template must"
                f" write one image token for each {{'type': 'image'}} part"
            )
        return list(zip(places, counts, strict=True))

    def open(self, pictures: Sequence[Any]) -> list[Any]:
        """Pictures as the image processor takes them; `PictureError` for one that can't be decoded."""
        return [opened(picture, self.colour) for picture in pictures]

    def _no_prefix(self, prompt: list[int], whole: list[int], where: int) -> CheckError:
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        text = self.tokenizer.decode
        return CheckError(
            f"row {where}: the chat template renders the prompt otherwise when an answer follows: after"
            f" {text(prompt[:same])[-60:]!r} the prompt has {text(prompt[same:])!r}, with the answer"
            f" {text(whole[same:])[:60]!r}; the model would be trained on another prompt than it is asked:"
            " use a chat template whose generation prompt begins the answer's turn"
        )


def expanded(ids: list[int], places: Sequence[tuple[int, int]]) -> list[int]:
    """`ids` with each of the tokens at `places` as many times as is said there."""
    for place, count in reversed(places):
        ids = ids[:place] + [ids[place]] * count + ids[place + 1 :]
    return ids


def said(row: Mapping[str, Any]) -> Iterator[str]:
    """All the text of a row."""
    for name in ("prompt", "completion", "chosen", "rejected"):
        for message in row.get(name, ()):
            yield plain(message["content"])


def check_broken(broken: Mapping[str, int], named: Mapping[str, Sequence[str]], rows: int, most: float) -> None:
    """Raises `CheckError` where more than the share `most` of the rows can't be shown."""
    count = sum(broken.values())
    if count > most * rows:
        some = "; ".join(f"{source}: {line}" for source, lines in named.items() for line in lines[:3])
        raise CheckError(
            f"{count} of {rows} rows have a picture that can't be shown, more than data.most_broken={most:g} allows ({some}):"
            " mend the pictures' folder, or raise it"
        )


def plain(content: Any) -> str:
    """A message's parts as text, for the templates of plain language models."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
