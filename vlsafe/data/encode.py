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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlsafe.data.examples import Example, Examples, Kept, Part
from vlsafe.data.pictures import PictureError, mean_colour, opened
from vlsafe.data.render import Render, renderer
from vlsafe.data.tokens import Ids, Special, special_tokens, tokenised
from vlsafe.data.turns import Marked, answers, between, called, marked, said, shown
from vlsafe.errors import CheckError
from vlsafe.model.families import Family, Size, family_of
from vlsafe.ranks import ALONE, Ranks

log = logging.getLogger(__name__)
CHUNK = 512  # rows tokenised at a time
MOST_BROKEN = 0.01  # share of the rows that may be left out, where their source says nothing else
NAMED = 100  # the most rows left out that are named, by source; the counts are always of all


@dataclass
class Counts:
    """What is counted while rows are encoded."""

    dropped: Counter[str] = field(default_factory=Counter)  # rows over the limit, by source
    supervised: Counter[str] = field(default_factory=Counter)  # supervised tokens, by source
    tokens: Counter[str] = field(default_factory=Counter)  # all tokens, by source
    broken: Counter[str] = field(default_factory=Counter)  # rows left out since they can't be shown, by source
    named: dict[str, list[str]] = field(default_factory=dict)  # the first of these, and why
    end_token: str = ""  # "template" or "appended": who ends the answer

    def add(self, later: Counts) -> None:
        """What was counted of the rows that follow."""
        for name in ("dropped", "supervised", "tokens", "broken"):
            getattr(self, name).update(getattr(later, name))
        for source, lines in later.named.items():
            named = self.named.setdefault(source, [])
            named += lines[: NAMED - len(named)]
        self.end_token = self.end_token or later.end_token


@dataclass
class Encoded(Counts):
    """All rows of a phase, and what was counted on the way. `parts`: the files that hold them, and the sources of each."""

    examples: Examples = field(default_factory=Examples)
    parts: list[tuple[str, list[str]]] = field(default_factory=list)


class How(NamedTuple):
    """What encoding goes through: the chat template, the tokenizer's special tokens, and where examples and pictures go."""

    conversation: Callable[[Sequence[Any]], Render]
    special: Special | None
    part: Part
    kept: Kept | None


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
        self._tokens_of_size: dict[Size, int] = {}

    def encode(
        self,
        rows: Sequence[Mapping[str, Any]],
        tick: Callable[[int], None] = lambda done: None,
        ranks: Ranks = ALONE,
        folder: Path | None = None,
    ) -> Encoded:
        """All rows, in their order; `tick(rows done)` is called now and then. Several `ranks` take turns at the rows and put
        what they make into `folder`, which all of them see; each then has all of it.

        Raises `CheckError` for a template that renders the prompt otherwise when an answer follows, for a row whose pictures
        and image tokens differ in number, and where more rows can't be shown than the share `rows.most_broken`: on every rank,
        as one process would."""
        most = getattr(rows, "most_broken", MOST_BROKEN)
        size = max(1, min(CHUNK, -(-len(rows) // ranks.world)))
        result, part = Encoded(), Part(folder and folder / f"encoded-{ranks.rank}")
        # Of several ranks, each trains on other rows than those that it encodes.
        how = How(renderer(self.processor), special_tokens(self.tokenizer), part, Kept() if ranks.world == 1 else None)
        for first in range(0, len(rows), size * ranks.world):
            counts, failed = Counts(), None
            places = range(len(rows))[first + size * ranks.rank :][:size]
            try:
                if places:
                    self._encode_chunk([rows[i] for i in places], places.start, how, counts)
            except Exception as error:
                failed = error
            told = str(failed) if isinstance(failed, CheckError) else f"rank {ranks.rank}: {type(failed).__name__}: {failed}"
            for rank, (theirs, why) in enumerate(ranks.gather((counts, told if failed else None))):
                if why is not None:
                    raise failed if failed and rank == ranks.rank else CheckError(why)
                result.add(theirs)
                check_broken(result.broken, result.named, len(rows), most)
            tick(min(len(rows), first + size * ranks.world))
        part.close()
        if folder is None:
            result.examples = Examples([(part.lines, list(part.sources), part.ids)])
        else:
            result.parts = [(f"encoded-{rank}", names) for rank, names in enumerate(ranks.gather(list(part.sources)))]
            result.examples = Examples.read(folder, result.parts)
        result.examples.kept = how.kept or Kept()
        if sum(result.dropped.values()) and ranks.main:
            log.warning("rows longer than %s tokens were dropped: %s", self.limit, dict(result.dropped))
        return result

    def _encode_chunk(self, rows: list[Mapping[str, Any]], start: int, how: How, counts: Counts) -> None:
        names = ("completion",) if "completion" in rows[0] else ("chosen", "rejected")
        kept: list[tuple[int, Mapping[str, Any]]] = []
        texts: list[Marked] = []
        for where, row in enumerate(rows, start):
            with left_out(row, where, counts):
                texts += self._marked(row, names, where, how, counts)
                kept.append((where, row))
        if not texts:
            return
        bos, first = self.tokenizer.bos_token, texts[0].text[: texts[0].marks[0]]
        # As apply_chat_template(tokenize=True) does: a tokenizer's own adds nothing, a processor's what the template left out.
        add_special = self.pictures is not None and not (bos and first.startswith(bos))
        ids = iter(tokenised(self.tokenizer, texts, add_special, how.special))
        for where, row in kept:
            sides = [next(ids) for _ in names]
            with left_out(row, where, counts):
                self._add(row, where, sides, how, counts)

    def _marked(self, row: Mapping[str, Any], names: Sequence[str], where: int, how: How, counts: Counts) -> list[Marked]:
        """What the template makes of a row, with each of its completions."""
        from jinja2 import TemplateError

        said = called(row, where)
        texts = []
        for name in names:
            places = answers(row["prompt"], row[name], said)
            learned = name != "rejected" and row.get("label") is not False
            if learned and any(m["role"] == "assistant" and not shown(m["content"]) for m in row[name]):
                raise PictureError("an answer is empty, so that the model would learn to say nothing")
            render = how.conversation([*row["prompt"], *row[name]])
            try:
                asked, told = [render(k, True) for k in places], [render(k + 1, False) for k in places]
            except TemplateError as error:
                raise PictureError(f"the chat template refuses its turns ({error})") from error
            text, by_template = marked(asked, told, self.tokenizer.eos_token, said)
            counts.end_token = counts.end_token or ("template" if by_template else "appended")
            texts.append(text)
        return texts

    def _add(self, row: Mapping[str, Any], where: int, sides: list[Ids], how: How, counts: Counts) -> None:
        """One row; `sides` has the ids of each completion, after the prompt."""
        expand = self._image_tokens(row, where)
        completions, unlearned, prompt = [], [], array("i")
        for whole, until in sides:
            for part in until:
                if not isinstance(part, int):
                    raise self._no_prefix(part, whole)
            places = self._places(row, whole, expand, where)
            bounds = [n + sum(count - 1 for place, count in places if place < n) for n in until if isinstance(n, int)]
            full = expanded(whole, places)
            prompt = array("i", full[: bounds[0]])
            completions.append(array("i", full[bounds[0] :]))
            unlearned.append(between(bounds))
        source = row["source"]
        if self.limit is not None and len(prompt) + max(map(len, completions)) > self.limit:
            counts.dropped[source] += 1
            return
        counts.supervised[source] += sum(map(len, completions)) - sum(b - a for side in unlearned for a, b in side)
        counts.tokens[source] += sum(len(prompt) + len(c) for c in completions)
        asked = tuple(unlearned) if any(unlearned) else ()
        example = Example(where, source, prompt, tuple(completions), len(expand), sum(expand), row.get("label"), asked)
        how.part.add(example, self.image_id)
        if how.kept is not None:
            how.kept.keep(where, row["images"])

    def rendered(self, row: Mapping[str, Any]) -> tuple[str, list[str]]:
        """What the template makes of a row: the prompt, and what it adds for each of the answers."""
        names = ("completion",) if "completion" in row else ("chosen", "rejected")
        conversation = renderer(self.processor)
        asked = conversation(row["prompt"])(len(row["prompt"]), True)
        told = [[*row["prompt"], *row[name]] for name in names]
        return asked, [conversation(messages)(len(messages), False)[len(asked) :] for messages in told]

    def _image_tokens(self, row: Mapping[str, Any], where: int) -> list[int]:
        """The number of image tokens for each picture of the row."""
        pictures = row["images"]
        if pictures and self.pictures is None:
            raise CheckError(f"{called(row, where)} has a picture, and the model is a plain language model")
        return [self.image_tokens(picture.size) for picture in pictures]

    def image_tokens(self, size: Size) -> int:
        """Of one picture of that size."""
        family = family_of(self.processor)
        size = family.shown_as(self.processor, size)
        if size not in self._tokens_of_size:
            self._tokens_of_size[size] = family.image_tokens(self.processor, size)
        return self._tokens_of_size[size]

    def seen(self, pictures: Sequence[Any]) -> dict[str, Any]:
        """What the model is given of pictures."""
        return family_of(self.processor).pictures(self.processor.image_processor(list(pictures), return_tensors="pt"))

    def _places(self, row: Mapping[str, Any], ids: list[int], counts: list[int], where: int) -> list[tuple[int, int]]:
        """Where each picture's one token stands, and how many it becomes."""
        places: list[int] = []
        if self.image_id is not None:
            for _ in range(ids.count(self.image_id)):
                places.append(ids.index(self.image_id, places[-1] + 1 if places else 0))
        if len(places) != len(counts):
            if self.image_id is not None and any(self.processor.image_token in text for text in said(row)):
                raise PictureError(f"its text holds the model's sign for a picture, {self.processor.image_token}")
            raise CheckError(
                f"{called(row, where)}: its prompt shows {len(places)} pictures and it brings {len(counts)}: the chat template"
                f" must write one image token for each {{'type': 'image'}} part"
            )
        return list(zip(places, counts, strict=True))

    def open(self, pictures: Sequence[Any]) -> list[Any]:
        """Pictures as the image processor takes them; `PictureError` for one that can't be decoded."""
        return [opened(picture, self.colour) for picture in pictures]

    def _no_prefix(self, prompt: list[int], whole: list[int]) -> PictureError:
        """Of a row whose text goes on from what is asked, and whose ids don't."""
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        text = self.tokenizer.decode
        return PictureError(
            f"the tokenizer joins the prompt's end with the answer's beginning: after {text(prompt[:same])[-60:]!r} the prompt"
            f" has {text(prompt[same:])!r}, with the answer {text(whole[same:])[:60]!r}; the model would be trained on another"
            " prompt than it is asked: strip the answer"
        )


def expanded(ids: list[int], places: Sequence[tuple[int, int]]) -> list[int]:
    """`ids` with each of the tokens at `places` as many times as is said there."""
    for place, count in reversed(places):
        ids = ids[:place] + [ids[place]] * count + ids[place + 1 :]
    return ids


@contextmanager
def left_out(row: Mapping[str, Any], where: int, counts: Counts) -> Iterator[None]:
    """A row that can't be shown to the model is counted and named."""
    try:
        yield
    except PictureError as error:
        counts.broken[row["source"]] += 1
        named = counts.named.setdefault(row["source"], [])
        if len(named) < NAMED:
            named.append(f"{row.get('id', where)}: {error}")


def check_broken(broken: Mapping[str, int], named: Mapping[str, Sequence[str]], rows: int, most: float) -> None:
    """Raises `CheckError` where more than the share `most` of the rows can't be shown."""
    count = sum(broken.values())
    if count > most * rows:
        some = "; ".join(f"{source}: {line}" for source, lines in named.items() for line in lines[:3])
        raise CheckError(
            f"{count} of {rows} rows can't be shown to the model, more than data.most_broken={most:g} allows ({some}):"
            " mend the rows or their pictures' folder, or raise it"
        )
