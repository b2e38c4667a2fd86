"""Token ids of marked texts, and how many of them stand before each mark: what the text until there has when it is asked alone.

A text of many turns would be tokenised again until each of its marks. But a fast tokenizer takes a text apart at its special
tokens first, and what stands between two of them has the same ids whatever else is in the text. So the whole is tokenised, and
until a mark only what follows the last special token before it, beginning with that.
"""

from __future__ import annotations

import pickle
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlsafe.data.turns import Marked


class Ids(NamedTuple):
    """Of a whole text. `until` has for each mark how many of them are the text's until there; where that one, asked alone, has
    others, these in place of the number."""

    whole: list[int]
    until: list[int | list[int]]


class Special(NamedTuple):
    """`cuts` finds what a tokenizer takes a text apart at; `ids`, by text, are of those that it finds wherever they stand."""

    cuts: re.Pattern[str]
    ids: Mapping[str, int]
    numbers: frozenset[int]


def special_tokens(tokenizer: Any) -> Special | None:
    """None where texts can't be told to be taken apart so."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or tokenizer.split_special_tokens:
        return None
    try:
        pickle.dumps((backend.normalizer, backend.pre_tokenizer))
    except Exception:  # someone's own in Python, which may look further than one piece
        return None
    known = {token.content: (id, token) for id, token in backend.get_added_tokens_decoder().items() if not token.normalized}
    if not known or any(token.single_word for _, token in known.values()):
        return None
    cuts = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))
    # Without the unknown token: ids have it wherever a word is unknown, and places could not be told from texts.
    ids = {
        text: id
        for text, (id, token) in known.items()
        if token.special and text == text.strip() and id != tokenizer.unk_token_id
    }
    return Special(cuts, ids, frozenset(ids.values()))


def tokenised(tokenizer: Any, texts: Sequence[Marked], add_special: bool, special: Special | None) -> list[Ids]:
    """The ids of `texts`, none of them empty. With `add_special` the tokenizer puts in front of each what it always does."""
    first = texts[0].text
    alone, added = ids_of(tokenizer, [first], False)[0], ids_of(tokenizer, [first], add_special)[0]
    front = added[: len(added) - len(alone)]
    if special is None or front + alone != added:
        return one_by_one(tokenizer, texts, add_special)
    wholes = ids_of(tokenizer, [text.text for text in texts], False)
    stops = [stops_of(text.text, ids, special) for text, ids in zip(texts, wholes, strict=True)]
    begun = [None if s is None else [last_stop(s, mark) for mark in text.marks] for text, s in zip(texts, stops, strict=True)]
    asked = [
        text.text[stop.start : mark]
        for text, before in zip(texts, begun, strict=True)
        for mark, stop in zip(text.marks[:-1], before or (), strict=False)
        if stop.end < mark
    ]
    tails, others = iter(ids_of(tokenizer, asked, False)), [t for t, s in zip(texts, stops, strict=True) if s is None]
    rest = iter(one_by_one(tokenizer, others, add_special))
    found = []
    for text, ids, before in zip(texts, wholes, begun, strict=True):
        if before is None:
            found.append(next(rest))
            continue
        until: list[int | list[int]] = []
        for mark, stop in zip(text.marks[:-1], before, strict=False):
            tail = next(tails) if stop.end < mark else ids[stop.place : stop.place + 1]
            same = ids[stop.place : stop.place + len(tail)] == tail
            until.append(len(front) + stop.place + len(tail) if same else front + ids[: stop.place] + tail)
        found.append(Ids(front + ids, [*until, len(front) + len(ids)]))
    return found


class Stop(NamedTuple):
    """A special token, or the beginning of a text: its characters, and which of the ids it has."""

    start: int
    end: int
    place: int


def stops_of(text: str, ids: Sequence[int], special: Special) -> list[Stop] | None:
    """The beginning and all special tokens of `text`; None where its ids have others."""
    seen = [match for match in special.cuts.finditer(text) if match.group() in special.ids]
    places = [place for place, id in enumerate(ids) if id in special.numbers]
    if [special.ids[match.group()] for match in seen] != [ids[place] for place in places]:
        return None
    return [Stop(0, -1, 0), *(Stop(match.start(), match.end(), place) for match, place in zip(seen, places, strict=True))]


def last_stop(stops: Sequence[Stop], mark: int) -> Stop:
    return stops[bisect_right(stops, mark, key=lambda stop: stop.end) - 1]


def one_by_one(tokenizer: Any, texts: Sequence[Marked], add_special: bool) -> list[Ids]:
    """By asking for the text until each mark."""
    ids = iter(ids_of(tokenizer, [text.text[:mark] for text in texts for mark in text.marks], add_special))
    found = []
    for text in texts:
        parts = [next(ids) for _ in text.marks]
        whole = parts[-1]
        found.append(Ids(whole, [len(part) if whole[: len(part)] == part else part for part in parts]))
    return found


def ids_of(tokenizer: Any, texts: Sequence[str], add_special: bool) -> list[list[int]]:
    if not texts:
        return []
    return list(tokenizer(list(texts), add_special_tokens=add_special, return_attention_mask=False)["input_ids"])
