"""A benchmark of one's own, from JSON lines (or a JSON list, or Parquet), under a name of one's own:

    eval.benchmarks: [ours]
    eval.settings: {ours: {name: jsonl, axis: helpfulness, needs_image: true, source: {folder: /data/ours.jsonl}}}

    {"id": "1", "prompt": "What is on the bench?", "category": "rooms", "target": "a kettle", "image": "pictures/1.png"}

`prompt` is needed, the rest is not: `id` is else the row's number, `category` the benchmark's name. `target` is the right
answer to a question (axis helpfulness): yes or no, the letter of an option, or words that the answer must hold. `image` is a
path from where the file lies, or in Parquet the picture's bytes. `expects` (refuse, comply, answer) follows from the axis; a
row that says another is an error. What the file holds, and the pictures that it names, enter the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.own import check_columns, check_file, check_files, fetched
from vlsafe.data.pictures import Picture, inside
from vlsafe.data.tables import Table, open_table
from vlsafe.errors import CheckError, ConfigError
from vlsafe.eval.base import Axis, Expects, Item
from vlsafe.eval.sets.base import PublicBenchmark, Shown, text_of
from vlsafe.registry import register
from vlsafe.settings import added
from vlsafe.sources import DataSource

COLUMNS = ("id", "prompt", "category", "target", "expects", "image", "images")
EXPECTS: Mapping[Axis, Expects] = {
    "text_safety": "refuse",
    "multimodal_safety": "refuse",
    "over_refusal": "comply",
    "helpfulness": "answer",
}


@register("benchmark", "jsonl")
@dataclass(frozen=True)
class Jsonl(PublicBenchmark):
    """`title` is its name in the results. With `needs_image` every row has a picture; models that see none are not asked."""

    licence: ClassVar[str] = "your own"

    source: DataSource
    axis: Axis  # type: ignore[misc]
    needs_image: bool | None = None  # type: ignore[misc,assignment]  # null: on axis multimodal_safety
    title: str = "jsonl"
    file: str | None = added(None)  # of a folder, its file, or a pattern; null: its only one, or all parts of one set

    def __post_init__(self) -> None:
        check_file(self.file)
        if self.needs_image is None:
            object.__setattr__(self, "needs_image", self.axis == "multimodal_safety")
        if not self.title or not self.title.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f"title={self.title!r}: must be of letters, digits, '.', '_' and '-'")

    def check_files(self) -> None:
        check_files(self.source, self.file)

    def read(self) -> Iterator[Item]:
        table = open_table(fetched(self.source, self.file))
        expects = EXPECTS[self.axis]
        for index in range(len(table)):
            row = table.row(index)
            where = table.where(index)
            check_columns(row, COLUMNS, where)
            if row.get("expects") not in (None, expects):
                raise CheckError(f"{where}: column 'expects' is {row['expects']!r}, but on axis {self.axis} it is {expects}")
            target = optional(table, index, row, "target")
            if expects == "answer" and not target:
                raise CheckError(f"{where}: has no 'target', the right answer that axis {self.axis} asks for")
            id, category = optional(table, index, row, "id"), optional(table, index, row, "category")
            picture = shown(table, index, row)
            yield Item(
                id or str(index), category or self.title, text_of(table, index, row, "prompt"), expects, target,
                None if picture is None else Shown(picture),
            )  # fmt: skip


def optional(table: Table, index: int, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise CheckError(f"{table.where(index)}: column '{name}' must be text, not {type(value).__name__}")
    return str(value).strip()


def shown(table: Table, index: int, row: Mapping[str, Any]) -> Picture | None:
    name = "images" if row.get("image") is None else "image"
    value, where = row.get(name), f"{table.where(index)}: column '{name}'"
    if isinstance(value, list):
        if len(value) > 1:
            raise CheckError(f"{where}: brings {len(value)} pictures, and a benchmark's row shows one")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return Picture(where, data=value)
    return Picture(str(value), inside(table.file(index).parent, value, where))
