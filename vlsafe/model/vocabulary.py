"""Which token each row of an embedding stands for: two models' rows may only be mixed where they mean the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError


def tokens_by_row(folder: Path) -> dict[int, str]:
    """Token by row, of a `tokenizer.json`; empty where there is none or its kind is unknown."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):  # unigram models: [token, score] in order
        tokens = {row: str(entry[0]) for row, entry in enumerate(vocabulary)}
    else:
        tokens = {int(row): str(token) for token, row in vocabulary.items()}
    return tokens | {int(added["id"]): str(added["content"]) for added in tokenizer.get("added_tokens", [])}


def other_tokens(own: Mapping[int, str], other: Mapping[int, str], rows: int) -> list[int]:
    """The rows that both have and that are different tokens."""
    return sorted(row for row in own.keys() & other.keys() if row < rows and own[row] != other[row])


def tokens_of(folder: Path, read_tokenizer: Callable[[Path], Any]) -> dict[int, str]:
    """As `tokens_by_row`, by way of transformers where the folder has only files of older kinds."""
    found = tokens_by_row(folder)
    return found or {row: token for token, row in read_tokenizer(folder).get_vocab().items()}


def check_tokens(one: Mapping[int, str], other: Mapping[int, str], rows: int, whose: str, others: str) -> None:
    """Raises `CheckError` where one of the first `rows` rows is another token in the other model."""
    differ = other_tokens(one, other, rows)
    if differ:
        first = differ[0]
        raise CheckError(
            f"{len(differ)} rows of the vocabulary are other tokens in {whose} than in {others}, the first {one[first]!r} and "
            f"{other[first]!r} (row {first}): they are not of one family"
        )
