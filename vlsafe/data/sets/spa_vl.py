"""SPA-VL: safety preferences over pictures, chosen by GPT-4V between the answers of many models.

Source: https://huggingface.co/datasets/sqrti/SPA-VL (`data/train-*.parquet`, 3.8 GB, 93,258 pairs), Zhang et al., arXiv
2406.12030. Licence: CC-BY-4.0 by its card. No gate. Columns, verified on its card at the commit below: `image` (bytes),
`question`, `chosen`, `rejected`, `image_name`. Its validation and test halves are not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.rows import PreferenceRow, Purpose
from vlsafe.data.sets.base import Dataset, Rows, assistant, files_of, picture_of, user, without_placeholder
from vlsafe.data.tables import Table, column, open_table
from vlsafe.registry import register
from vlsafe.sources import DataSource

HUB = DataSource("sqrti/SPA-VL", "935596c0b6afb34f4439bac0e5b3d982958bdd5e")
FILES = "data/train-*.parquet"


@register("dataset", "spa_vl")
@dataclass(frozen=True)
class SpaVL(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("preference",)
    licence: ClassVar[str] = "CC-BY-4.0"
    page: ClassVar[str] = "https://huggingface.co/datasets/sqrti/SPA-VL"

    source: DataSource = HUB

    def reads(self, field: str) -> Sequence[str] | None:
        return [FILES]

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        table = open_table(files_of(self.source.fetch(self.reads("source")), FILES, self.source))
        return Rows(lambda i: row(table, i), range(len(table)))


def row(table: Table, index: int) -> PreferenceRow:
    said = table.row(index)
    question, chosen, rejected = (column(table, index, said, name) for name in ("question", "chosen", "rejected"))
    name = str(said.get("image_name") or index)
    image = picture_of(column(table, index, said, "image", (dict, bytes, type(None))), table, index, "image", name)
    return {
        "id": name,
        "source": "spa_vl",
        "prompt": [user(without_placeholder(question), pictures=1)],
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
        "images": [image],
    }
