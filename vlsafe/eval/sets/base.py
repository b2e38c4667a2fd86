"""Base of the benchmarks that are read from files: a repository of the hub at one commit, a local folder or a mirror.

Rows are read and pictures looked at before a model is loaded; what is missing or wrong is named by file, row and column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from vlsafe.data.tables import CsvTable, Table, open_table
from vlsafe.errors import CheckError
from vlsafe.eval.base import Benchmark, Item
from vlsafe.sources import DataSource

T = TypeVar("T")


class PublicBenchmark(Benchmark):
    """Where it is read from is a setting, `source`; a subclass says in `read` how, in the file's own order."""

    licence: ClassVar[str] = ""
    page: ClassVar[str] = ""  # where it is described; where its terms are accepted if it is gated
    gated: ClassVar[bool] = False  # its terms have to be accepted first, and HF_TOKEN set
    non_commercial: ClassVar[bool] = False
    source: DataSource

    def read(self) -> Iterable[Item]:
        raise TypeError(f"{type(self).__name__} is abstract")

    def items(self, limit: int | None) -> Sequence[Item]:
        """Categories take turns by their share, so that a limit keeps the balance.

        Raises `SourceError` where it can't be had, `CheckError` where a row isn't what it should be or has no picture.
        """
        by_category: dict[str, list[Item]] = {}
        for item in self.read():
            by_category.setdefault(item.category, []).append(item)
        if not by_category:
            raise CheckError(f"benchmark={self.title}: {self.source.where()} has no row for it")
        return check_pictures(self, balanced(by_category)[:limit])


def balanced(groups: Mapping[str, Sequence[T]]) -> list[T]:
    """Members of all groups, each group spread evenly over the whole: the first part holds all in proportion."""
    due = [
        ((i + 0.5) / len(group), order, member) for order, group in enumerate(groups.values()) for i, member in enumerate(group)
    ]
    return [member for _, _, member in sorted(due, key=lambda entry: entry[:2])]


def check_pictures(benchmark: Benchmark, items: Sequence[Item]) -> Sequence[Item]:
    """Raises `CheckError` for a picture that isn't there or can't be one (its header is read, no more), and for an item that
    has none where the benchmark is about pictures."""
    for item in items:
        if item.image is None:
            if benchmark.needs_image:
                raise CheckError(f"benchmark={benchmark.title}: item {item.id} has no picture")
            continue
        look = getattr(item.image, "look", None)
        try:
            if look is not None:
                look()
        except CheckError as error:
            raise CheckError(f"benchmark={benchmark.title}: item {item.id}: its picture {error}") from error
    return items


class Shown:
    """An item's picture: called, it is decoded; `look` reads its header."""

    def __init__(self, picture: Any) -> None:
        self.picture = picture

    def __call__(self) -> Any:
        return self.picture.open()

    def look(self) -> None:
        _ = self.picture.size


def find_table(folder: Path, patterns: Sequence[str], source: DataSource) -> Table:
    """The rows of the files that match the first pattern that any matches; `folder` may be a file itself."""
    for pattern in patterns:
        paths = [folder] if folder.is_file() else sorted(folder.glob(pattern))
        if paths and paths[0].suffix == ".csv":
            if len(paths) > 1:
                raise CheckError(
                    f"{source.where()}: has several CSVs ({', '.join(path.name for path in paths[:4])}), and which is meant"
                    " isn't said: set its source's folder to that file"
                )
            return CsvTable(paths[0])
        if paths:
            return open_table(paths)
    raise CheckError(f"{source.where()}: has none of {', '.join(patterns)}: is it the data set that its setting says?")


def text_of(table: Table, index: int, row: Mapping[str, Any], *names: str) -> str:
    """The first of these columns that the row has, which must hold text. Raises `CheckError` otherwise."""
    name = next((n for n in names if n in row), None)
    if name is None:
        told = " nor ".join(f"'{n}'" for n in names)
        raise CheckError(f"{table.where(index)}: has no column {told}; it has: {', '.join(map(str, row)) or 'none'}")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise CheckError(
            f"{table.where(index)}: column '{name}' must be text, not {type(value).__name__ if value else 'empty'}"
        )
    return value
