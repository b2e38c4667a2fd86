"""Reading and writing rows as JSON lines. Every non-ASCII or control character is escaped, so that hostile answers can be
shown on a terminal as they lie in the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.files import write_atomic

RESPONSES = "responses.jsonl"
LABELS = "labels.jsonl"


def line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(line(row) for row in rows))


def read_rows(path: Path) -> list[Any]:
    """Raises `CheckError` with the line's number where one is no JSON object."""
    rows = []
    with path.open(encoding="utf-8") as handle:
        for number, text in enumerate(handle, start=1):
            try:
                row = json.loads(text)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise CheckError(f"{path}, line {number}: not a row; remove the artifact, and the same command makes it again")
            rows.append(row)
    return rows


def read_partial(path: Path) -> list[Any]:
    """The whole rows of a file that was being appended to when its process died. What follows the last whole one is cut off, so
    that appending goes on from there."""
    if not path.is_file():
        return []
    rows, good = [], 0
    with path.open("rb") as handle:
        for text in handle:
            try:
                row = json.loads(text) if text.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                break
            rows.append(row)
            good += len(text)
    if good < path.stat().st_size:
        with path.open("r+b") as handle:
            handle.truncate(good)
    return rows
