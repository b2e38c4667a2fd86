"""Rows of Parquet files by their index, in any order.

A file is compressed by groups of rows: in order, each group is decoded once; in a shuffled order, one for each row. So once
more groups were decoded than there are, files are unpacked by the package `datasets` into its own cache
(`HF_DATASETS_CACHE`), and rows are read from there: one process unpacks, the others wait, and later runs find it.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from vlsafe.data.tables import Table
from vlsafe.errors import CheckError

log = logging.getLogger(__name__)
KEPT_GROUPS = 2  # decoded: neighbours are often asked for together


class ParquetTable(Table):
    """The rows of Parquet files, one file after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow
        import pyarrow.parquet as pq

        self.paths = list(paths)
        counts, self._names, self._starts = list[int](), list[tuple[int, int]](), list[int]()
        for number, path in enumerate(self.paths):
            try:
                metadata = pq.read_metadata(path)
            except (OSError, pyarrow.ArrowException) as error:
                raise CheckError(f"{path}: is no Parquet that can be read ({str(error).splitlines()[0]})") from None
            groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._starts.append(sum(counts))
            counts += groups
            self._names += [(number, i) for i in range(len(groups))]
        self._ends = list(accumulate(counts))
        self._firsts = [end - count for end, count in zip(self._ends, counts, strict=True)]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._flat: dict[int, Any] = {}  # by file, what was unpacked; None: it could not be
        self.decoded = 0  # groups, until now

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def where(self, index: int) -> str:
        number = self._number(index)
        return f"{self.paths[number]}: row {index - self._starts[number]}"

    def file(self, index: int) -> Path:
        return self.paths[self._number(index)]

    def row(self, index: int) -> Mapping[str, Any]:
        place, number = bisect_right(self._ends, index), self._number(index)
        if place not in self._kept and self.decoded > len(self._names):
            flat = self._unpacked(number)
            if flat is not None:
                return first(flat[index - self._starts[number]])
        return first(self._group(place).slice(index - self._firsts[place], 1))

    def _number(self, index: int) -> int:
        """Of the file that a row is in."""
        return self._names[bisect_right(self._ends, index)][0]

    def _group(self, place: int) -> Any:
        import pyarrow.parquet as pq

        if place not in self._kept:
            number, group = self._names[place]
            with pq.ParquetFile(self.paths[number]) as file:
                self._kept[place] = file.read_row_group(group)
            self.decoded += 1
            while len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(place)
        return self._kept[place]

    def _unpacked(self, number: int) -> Any:
        if number not in self._flat:
            start = self._starts[number]
            some = bisect_right(self._ends, start)
            rows = bisect_right([n for n, _ in self._names], number)
            count = self._ends[rows - 1] - start
            try:
                flat = unpacked(self.paths[number])
                if len(flat) != count or first(flat[0]) != first(self._group(some).slice(0, 1)):
                    raise ValueError("rows are not the same after it")
            except Exception as error:  # a full disk, a cache that can't be written, a type that datasets doesn't know
                log.warning(
                    "%s: could not be unpacked into the cache of datasets (%s: %s): its rows are read as they are, more slowly;"
                    " HF_DATASETS_CACHE names another place",
                    self.paths[number], type(error).__name__, error,
                )  # fmt: skip
                flat = None
            self._flat[number] = flat
        return self._flat[number]


def first(table: Any) -> dict[str, Any]:
    """The first row of an Arrow table."""
    row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    return row


def unpacked(path: Path) -> Any:
    """The file's rows as a memory-mapped Arrow table for each index, from the cache of `datasets`, made where it isn't there.

    A file that has changed since is another one: it is known by its path, size and time."""
    import datasets

    status = path.stat()
    name = hashlib.sha256(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:24]
    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        cache = Path(datasets.config.HF_DATASETS_CACHE) / "vlsafe" / name
        return datasets.Dataset.from_parquet(str(path), cache_dir=str(cache)).with_format("arrow")
    finally:
        if not silent:
            datasets.enable_progress_bars()
