"""Rows of a JSON list, JSON lines or Parquet, read one at a time by their index: of a file only where rows begin is kept.

Memory stays flat with a million rows, and processes on one machine share what the system keeps of the files.
"""

from __future__ import annotations

import csv
import json
import mmap
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError

KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}
_SPACE = b" \t\r\n"


class Table(Sequence[Mapping[str, Any]]):
    """Rows of one or more files. `where(i)` names file and row, for messages."""

    def where(self, index: int) -> str:
        raise NotImplementedError

    def file(self, index: int) -> Path:
        """The file that a row is in."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.row(range(len(self))[index])

    def row(self, index: int) -> Mapping[str, Any]:
        raise NotImplementedError


class JsonTable(Table):
    """A JSON list of objects, or JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self._starts, self._ends = _rows(path, status.st_size, status.st_mtime_ns)
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        return f"{self.path}: row {index}"

    def file(self, index: int) -> Path:
        return self.path

    def row(self, index: int) -> Mapping[str, Any]:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        text = self._map[self._starts[index] : self._ends[index]]
        try:
            row = json.loads(text)
        except ValueError as error:
            raise CheckError(f"{self.where(index)}: is no JSON ({error})") from None
        if not isinstance(row, dict):
            raise CheckError(f"{self.where(index)}: must be an object with columns, not {type(row).__name__}")
        return row


@lru_cache(maxsize=8)
def _rows(path: Path, size: int, _time: int) -> tuple[array[int], array[int]]:
    """Where each row begins and ends, in bytes."""
    if not size:
        raise CheckError(f"{path}: is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = next((i for i in range(size) if content[i] not in _SPACE), size)
        if content[start : start + 1] != b"[":
            return _lines(content)
        # One byte a character: the same places as in the file, and JSON's own signs are the same in any UTF-8 text.
        return _items(str(content, "latin-1"), start + 1, path)


def _lines(content: mmap.mmap) -> tuple[array[int], array[int]]:
    starts, ends, start = array("Q"), array("Q"), 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        if content[start:end].strip():
            starts.append(start)
            ends.append(end)
        start = end + 1
    return starts, ends


def _items(text: str, start: int, path: Path) -> tuple[array[int], array[int]]:
    starts, ends = array("Q"), array("Q")
    decode = json.JSONDecoder().raw_decode
    space = _SPACE.decode()
    while True:
        while text[start : start + 1] and text[start] in space:
            start += 1
        if text[start : start + 1] == "]":
            return starts, ends
        try:
            _, end = decode(text, start)
        except ValueError as error:
            raise CheckError(f"{path}: row {len(starts)}: is no JSON ({error})") from None
        starts.append(start)
        ends.append(end)
        while text[end : end + 1] and text[end] in space:
            end += 1
        if text[end : end + 1] not in (",", "]"):
            raise CheckError(f"{path}: row {len(starts) - 1}: the list has no ',' or ']' after it; the file was cut off?")
        start = end + (text[end] == ",")


class Joined(Table):
    """Tables one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = [table for table in tables if len(table)]
        self._ends = list(accumulate(map(len, self.tables)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def where(self, index: int) -> str:
        table, place = self._place(index)
        return table.where(place)

    def file(self, index: int) -> Path:
        table, place = self._place(index)
        return table.file(place)

    def row(self, index: int) -> Mapping[str, Any]:
        table, place = self._place(index)
        return table.row(place)

    def _place(self, index: int) -> tuple[Table, int]:
        number = bisect_right(self._ends, index)
        return self.tables[number], index - (self._ends[number - 1] if number else 0)


class CsvTable(Table):
    """A CSV with a header, of a size that fits in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                self._rows: list[dict[str, Any]] = list(csv.DictReader(file, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise CheckError(f"{path}: is no CSV that can be read ({error})") from None

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        return f"{self.path}: row {index}"

    def file(self, index: int) -> Path:
        return self.path

    def row(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]


def open_table(paths: Sequence[Path]) -> Table:
    """The rows of files of one kind, by their names' endings: .parquet, or .json and .jsonl."""
    if not paths:
        raise CheckError("no files to read rows from")
    parquet = [path for path in paths if path.suffix == ".parquet"]
    if parquet and len(parquet) != len(paths):
        raise CheckError(f"{paths[0].parent}: Parquet and JSON side by side; name one file")
    for path in paths:
        if path.suffix not in (".parquet", ".json", ".jsonl", ".ndjson"):
            raise CheckError(f"{path}: its rows can't be read; give .jsonl, .json or .parquet")
    if parquet:
        from vlsafe.data.parquet import ParquetTable

        return ParquetTable(paths)
    return JsonTable(paths[0]) if len(paths) == 1 else Joined([JsonTable(path) for path in paths])


def column(table: Table, index: int, row: Mapping[str, Any], name: str, kind: type | tuple[type, ...] = str) -> Any:
    """A row's value of a column. Raises `CheckError`, with file, row and column, where it isn't there or of another type."""
    if name not in row:
        raise CheckError(f"{table.where(index)}: has no column '{name}'; it has: {', '.join(map(str, row)) or 'none'}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        told = " or ".join(KINDS.get(k, k.__name__) for k in kinds)
        raise CheckError(f"{table.where(index)}: column '{name}' must be {told}, not {type(value).__name__}")
    return value
