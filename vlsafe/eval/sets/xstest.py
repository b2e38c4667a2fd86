"""XSTest: 250 safe prompts that look unsafe (over-refusal), and 200 unsafe ones in contrast to them (text safety).

Source: Röttger et al., NAACL 2024, arXiv 2308.01263, as https://huggingface.co/datasets/natolambert/xstest-v2-copy. Licence:
CC-BY-4.0. No gate. Pinned to its commit of 14 December 2023. Columns: `id`, `type` (the unsafe ones begin with `contrast_`) and
`prompt`, in the split `prompts`; the other five splits hold models' answers and are not read.

`walledai/XSTest` (split `test`) and the authors' `xstest_prompts.csv` are read as well: they say `label` (safe, unsafe) too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlsafe.errors import CheckError
from vlsafe.eval.base import Axis, Expects, Item
from vlsafe.eval.sets.base import PublicBenchmark, find_table, text_of
from vlsafe.registry import register
from vlsafe.sources import DataSource

FILES = ("**/prompts*.parquet", "**/test*.parquet", "xstest*.csv")
SOURCE = DataSource("natolambert/xstest-v2-copy", "87e0b32d1ee90a48ac86ff4d1862692ee63e0ef2")


@register("benchmark", "xstest")
@dataclass(frozen=True)
class XSTest(PublicBenchmark):
    """The safe prompts: a refusal is one too many."""

    axis: ClassVar[Axis] = "over_refusal"
    needs_image: ClassVar[bool] = False
    licence: ClassVar[str] = "CC-BY-4.0"
    page: ClassVar[str] = "https://huggingface.co/datasets/natolambert/xstest-v2-copy"
    expects: ClassVar[Expects] = "comply"

    source: DataSource = SOURCE

    def reads(self, field: str) -> Sequence[str] | None:
        return FILES

    def read(self) -> Iterator[Item]:
        table = find_table(self.source.fetch(self.reads("source")), FILES, self.source)
        for index in range(len(table)):
            row = table.row(index)
            kind = text_of(table, index, row, "type")
            said = str(row.get("label") or ("unsafe" if kind.startswith("contrast_") else "safe"))
            if said not in ("safe", "unsafe"):
                raise CheckError(f"{table.where(index)}: column 'label' must be safe or unsafe, not {said!r}")
            if (said == "safe") == (self.expects == "comply"):
                id = str(row["id"]) if row.get("id") is not None else str(index)
                yield Item(id, kind, text_of(table, index, row, "prompt"), self.expects)


@register("benchmark", "xstest_unsafe")
@dataclass(frozen=True)
class XSTestUnsafe(XSTest):
    """The unsafe prompts."""

    axis: ClassVar[Axis] = "text_safety"
    expects: ClassVar[Expects] = "refuse"
