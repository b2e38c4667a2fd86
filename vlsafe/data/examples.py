"""Encoded rows, held flat: a line of numbers for each in memory, and all their ids one after the other in files.

<name>.ids     of each example its prompt, its completions and what of them is not learned, as 32-bit numbers
<name>.lines   a `Line` for each, in the same order

Ids are read where an example is asked for: processes of one machine share what the system keeps of the files, and there may be
more of them than there is memory. Without a folder they are kept in memory.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vlsafe.data.pictures import weight
from vlsafe.errors import CheckError
from vlsafe.files import revalidate

KEPT_BYTES = 128 * 2**20  # pictures kept in memory between two uses of a row; the rest is asked of the rows again


@dataclass(frozen=True)
class Example:
    """One row as ids. `completions` has one list for a supervised or labelled row; chosen and rejected for a pair."""

    row: int
    source: str
    prompt: array[int]
    completions: tuple[array[int], ...]
    pictures: int
    image_tokens: int  # what its pictures need
    label: bool | None = None  # of a labelled row
    asked: tuple[tuple[tuple[int, int], ...], ...] = ()  # ranges of each completion that are not the assistant's


class Line(NamedTuple):
    """An example without its numbers. A side that it hasn't is -1 long."""

    row: int
    source: int  # among its part's
    label: int  # -1: none
    pictures: int
    image_tokens: int  # what its pictures need
    shown: int  # what it has of them
    top: int  # its highest id
    prompt: int
    completion: int
    other: int  # the rejected answer of a pair
    asked: int
    other_asked: int


LENGTHS = [Line._fields.index(name) for name in ("prompt", "completion", "other", "asked", "other_asked")]


class Part:
    """What one process encodes, in the order in which it comes. `path` is its files' without their endings."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.lines, self.sources = path, array("i"), dict[str, int]()
        self.ids: BinaryIO = io.BytesIO() if path is None else path.with_suffix(".ids").open("wb")

    def add(self, example: Example, image_id: int | None) -> None:
        import numpy as np

        pair = len(example.completions) == 2
        asked = [array("i", chain.from_iterable(ranges)) for ranges in example.asked]
        ids = np.frombuffer(b"".join(map(array.tobytes, (example.prompt, *example.completions))), np.int32)
        line = Line(
            row=example.row,
            source=self.sources.setdefault(example.source, len(self.sources)),
            label=-1 if example.label is None else int(example.label),
            pictures=example.pictures,
            image_tokens=example.image_tokens,
            shown=int(np.count_nonzero(ids == image_id)) if image_id is not None else 0,
            top=int(ids.max(initial=0)),
            prompt=len(example.prompt),
            completion=len(example.completions[0]),
            other=len(example.completions[1]) if pair else -1,
            asked=len(asked[0]) if asked else 0,
            other_asked=len(asked[1]) if asked and pair else 0,
        )
        self.lines.extend(line)
        self.ids.write(ids.tobytes() + b"".join(map(array.tobytes, asked)))

    def close(self) -> None:
        """Everything is in the files, where there are some: others may read them."""
        if self.path is not None:
            self.ids.close()
            self.path.with_suffix(".lines").write_bytes(self.lines.tobytes())


class Examples(Sequence[Example]):
    """The examples of all parts by row. What is asked of all of them at once is in memory; ids are read one by one."""

    def __init__(self, parts: Sequence[tuple[array[int], Sequence[str], BinaryIO]] = ()) -> None:
        """Of each part its lines, its sources and where its ids are."""
        import numpy as np

        self.kept, self._ids = Kept(), [ids for _, _, ids in parts]
        lines, starts, sources = [np.empty((0, len(Line._fields)), np.int32)], [np.empty(0, np.int64)], list[str]()
        for flat, _, _ in parts:
            lines.append(np.frombuffer(flat, np.int32).reshape(-1, len(Line._fields)))
            length = lines[-1][:, LENGTHS].clip(0).sum(axis=1, dtype=np.int64)
            starts.append(4 * (length.cumsum() - length))
        for some, (_, names, _) in zip(lines[1:], parts, strict=True):
            sources += [names[k] for k in some[:, Line._fields.index("source")].tolist()]
        together = np.concatenate(lines)
        order = together[:, 0].argsort(kind="stable")
        self._lines, self._starts = together[order], np.concatenate(starts)[order]
        self._parts = np.repeat(np.arange(len(parts)), [len(some) for some in lines[1:]])[order]
        self.sources = [sources[i] for i in order.tolist()]

    @classmethod
    def read(cls, folder: Path, parts: Sequence[tuple[str, Sequence[str]]]) -> Examples:
        """Of the files of `parts`: their name and their sources."""
        found = []
        revalidate(folder)
        for name, sources in parts:
            lines = array("i")
            lines.frombytes((folder / f"{name}.lines").read_bytes())
            found.append((lines, sources, (folder / f"{name}.ids").open("rb", buffering=0)))
        return cls(found)

    def column(self, name: str) -> Any:
        """A number of every `Line`."""
        return self._lines[:, Line._fields.index(name)]

    @property
    def pictured(self) -> list[bool]:
        return [count > 0 for count in self.column("pictures").tolist()]

    @property
    def labels(self) -> list[bool | None]:
        return [None if label < 0 else label > 0 for label in self.column("label").tolist()]

    def close(self) -> None:
        """No example can be asked for any more, and its files may be deleted."""
        for ids in self._ids:
            ids.close()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        line = Line(*self._lines[index].tolist())
        lengths = [max(line[k], 0) for k in LENGTHS]
        numbers, at = self._numbers(int(self._parts[index]), int(self._starts[index]), sum(lengths)), 0
        pieces = []
        for length in lengths:
            pieces.append(numbers[at : at + length])
            at += length
        prompt, completion, other, *asked = pieces
        pair = line.other >= 0
        ranges = tuple(tuple(zip(side[::2], side[1::2], strict=True)) for side in asked[: 1 + pair])
        return Example(
            line.row,
            self.sources[index],
            prompt,
            (completion, other) if pair else (completion,),
            line.pictures,
            line.image_tokens,
            None if line.label < 0 else line.label > 0,
            ranges if any(ranges) else (),
        )

    def _numbers(self, part: int, start: int, count: int) -> array[int]:
        ids, found = self._ids[part], array("i")
        if isinstance(ids, io.BytesIO):
            found.frombytes(ids.getbuffer()[start : start + 4 * count])
        else:
            found.frombytes(os.pread(ids.fileno(), 4 * count, start))
        if len(found) != count:
            raise CheckError(f"{getattr(ids, 'name', 'ids')}: has less than was written; was it changed while training ran?")
        return found


class Kept:
    """Pictures of rows, so that these needn't be made again, as long as they are few."""

    def __init__(self) -> None:
        self.bytes, self._by_row = 0, dict[int, list[Any]]()

    def keep(self, row: int, pictures: list[Any]) -> None:
        if row not in self._by_row and self.bytes <= KEPT_BYTES:
            self.bytes += sum(map(weight, pictures))
            if self.bytes <= KEPT_BYTES:
                self._by_row[row] = pictures

    def of(self, row: int) -> list[Any] | None:
        return self._by_row.get(row)
