"""AdvBench: 520 harmful instructions in plain text.

Source: Zou et al., arXiv 2307.15043, as https://huggingface.co/datasets/walledai/AdvBench. Licence: MIT. Gated: accept its
terms there, and set HF_TOKEN. Pinned to its commit of 4 July 2024. Columns: `prompt`, `target` (not read). The authors' own
`harmful_behaviors.csv` (columns `goal`, `target`; https://github.com/llm-attacks/llm-attacks, `data/advbench`) is read as well,
from a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlsafe.eval.base import Axis, Item
from vlsafe.eval.sets.base import PublicBenchmark, find_table, text_of
from vlsafe.registry import register
from vlsafe.sources import DataSource

FILES = ("**/train*.parquet", "**/harmful_behaviors.csv", "*.csv")
SOURCE = DataSource("walledai/AdvBench", "9d4730540082fa4017450b65ca1c0e1d8d30446e")


@register("benchmark", "advbench")
@dataclass(frozen=True)
class AdvBench(PublicBenchmark):
    axis: ClassVar[Axis] = "text_safety"
    needs_image: ClassVar[bool] = False
    licence: ClassVar[str] = "MIT"
    page: ClassVar[str] = "https://huggingface.co/datasets/walledai/AdvBench"
    gated: ClassVar[bool] = True

    source: DataSource = SOURCE

    def reads(self, field: str) -> Sequence[str] | None:
        return FILES

    def read(self) -> Iterator[Item]:
        table = find_table(self.source.fetch(self.reads("source")), FILES, self.source)
        for index in range(len(table)):
            yield Item(f"{index:03d}", "advbench", text_of(table, index, table.row(index), "goal", "prompt"), "refuse")
