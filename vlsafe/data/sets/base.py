"""Base of the group `dataset`: a public data set, or a user's own files, as training rows. `data=mixture` mixes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlsafe.data.pictures import Picture, inside
from vlsafe.data.rows import Message, Part, Purpose
from vlsafe.data.tables import Table
from vlsafe.errors import CheckError
from vlsafe.registry import Component
from vlsafe.sources import DataSource

PLACEHOLDER = "<image>"  # how data sets in LLaVA's form write a picture


class Dataset(Component):
    """Where the rows come from is a setting, `source`; what may be done with them is said here."""

    serves: ClassVar[tuple[str, ...]] = ()  # the purposes that it has rows for
    pictured: ClassVar[bool] = True  # false: none of its rows has pictures
    licence: ClassVar[str] = ""
    page: ClassVar[str] = ""  # where it is described; where its terms are accepted if it is gated
    gated: ClassVar[bool] = False  # its terms have to be accepted first, and HF_TOKEN set
    non_commercial: ClassVar[bool] = False
    source: DataSource

    def check_files(self) -> None:
        """Raises where it is seen from local files' names that they can't be read: before anything runs."""

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        """Every row for a purpose that it serves, in the data set's own order: `SupervisedRow` or `PreferenceRow`, with the
        data set's own `id`. Rows are made when they are asked for.

        Raises `SourceError` where the data set isn't there, `CheckError` where it isn't what it should be.
        """
        raise TypeError(f"dataset {self.component_name} has no rows")


class Rows(Sequence[Any]):
    """`make(place)` for each of `places`, when it is asked for; so is each slice."""

    def __init__(self, make: Callable[[int], Any], places: Sequence[int]) -> None:
        self._make, self._places = make, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Rows(self._make, self._places[index])
        return self._make(self._places[index])


def user(text: str, pictures: int = 0) -> Message:
    """A question, its pictures first."""
    shown: list[Part] = [{"type": "image"}] * pictures
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def without_placeholder(text: str) -> str:
    return text.replace(PLACEHOLDER, "").strip()


def file_of(folder: Path, name: str, source: DataSource) -> Path:
    """A file of a data set's folder; the folder may also be that file."""
    path = folder if folder.is_file() else folder / name
    if not path.is_file():
        raise CheckError(f"{source.where()}: has no {name}: is it the data set that its setting says?")
    return path


def files_of(folder: Path, pattern: str, source: DataSource) -> list[Path]:
    """All files of a data set that match, in order."""
    paths = [folder] if folder.is_file() else sorted(folder.glob(pattern))
    if not paths:
        raise CheckError(f"{source.where()}: has no {pattern}: is it the data set that its setting says?")
    return paths


def picture_of(value: Any, table: Table, index: int, name: str, told: str) -> Picture:
    """A column's picture: a path relative to its file, bytes, or both as Parquet keeps them. `told` is what messages call it.

    None is a picture that is missing. Raises `CheckError` for a path that climbs out of the file's folder."""
    where = f"{table.where(index)}: column '{name}'"
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        value = path if content is None else content
        told = str(path or told)
    if value is None or isinstance(value, bytes):
        return Picture(told, data=value or b"")
    if not isinstance(value, str):
        raise CheckError(f"{where} must be a path or bytes, not {type(value).__name__}")
    return Picture(value, inside(table.file(index).parent, value, where))
