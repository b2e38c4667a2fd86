"""PKU-SafeRLHF: two answers of a Llama to each prompt, with people's word on which is safer and which is better.

Source: https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF (`data/<model>/train.jsonl` of Alpaca-7B, Alpaca2-7B and
Alpaca3-8B), Ji et al., arXiv 2406.15513. Licence: **CC-BY-NC-4.0, non-commercial**, by its card. No gate. Files verified on
its card at the commit below; columns, verified in several public readers: `prompt`, `response_0`, `response_1`,
`is_response_0_safe`, `is_response_1_safe`, `better_response_id`, `safer_response_id`.

`preference` is the safer answer to the other, where it is safe at all (`unsafe_pairs` adds pairs of two unsafe answers).
`helpful_preference` is the better of two safe answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.rows import PreferenceRow, Purpose
from vlsafe.data.sets.base import Dataset, Rows, assistant, files_of, user
from vlsafe.data.tables import Table, column, open_table
from vlsafe.errors import CheckError
from vlsafe.registry import register
from vlsafe.sources import DataSource

HUB = DataSource("PKU-Alignment/PKU-SafeRLHF", "d79b19b2043c4b168d8d64c61ef4ba4ed1ffe2c0")
FILES = "data/*/train.jsonl"


@register("dataset", "safe_rlhf")
@dataclass(frozen=True)
class SafeRLHF(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("preference", "helpful_preference")
    pictured: ClassVar[bool] = False
    licence: ClassVar[str] = "CC-BY-NC-4.0"
    page: ClassVar[str] = "https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF"
    non_commercial: ClassVar[bool] = True

    source: DataSource = HUB
    unsafe_pairs: bool = False

    def reads(self, field: str) -> Sequence[str] | None:
        return [FILES]

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        folder = self.source.fetch(self.reads("source"))
        found = files_of(folder, FILES, self.source) if folder.is_file() or list(folder.glob(FILES)) else []
        table = open_table(found or files_of(folder, "**/train*.parquet", self.source))
        helpful = purpose == "helpful_preference"
        places = list(both_safe(table) if helpful else safer(table, self.unsafe_pairs))
        return Rows(lambda i: row(table, i, "better_response_id" if helpful else "safer_response_id"), places)


def both_safe(table: Table) -> Iterator[int]:
    for i in range(len(table)):
        said = table.row(i)
        if all(column(table, i, said, f"is_response_{k}_safe", bool) for k in (0, 1)):
            yield i


def safer(table: Table, unsafe_pairs: bool) -> Iterator[int]:
    for i in range(len(table)):
        said = table.row(i)
        if unsafe_pairs or column(table, i, said, f"is_response_{which(table, i, said, 'safer_response_id')}_safe", bool):
            yield i


def which(table: Table, index: int, said: Any, name: str) -> int:
    chosen: int = column(table, index, said, name, int)
    if chosen not in (0, 1):
        raise CheckError(f"{table.where(index)}: column '{name}' must be 0 or 1, not {chosen}")
    return chosen


def row(table: Table, index: int, name: str) -> PreferenceRow:
    said = table.row(index)
    chosen = which(table, index, said, name)
    return {
        "id": str(said.get("id", index)),
        "source": "safe_rlhf",
        "prompt": [user(column(table, index, said, "prompt"))],
        "chosen": [assistant(column(table, index, said, f"response_{chosen}"))],
        "rejected": [assistant(column(table, index, said, f"response_{1 - chosen}"))],
        "images": [],
    }
