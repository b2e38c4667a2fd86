"""VLGuard's test set: 1,000 pictures, 558 safe ones with a safe and an unsafe instruction each, and 442 unsafe ones with one.

Source: Zong et al., ICML 2024, arXiv 2402.02207: https://huggingface.co/datasets/ys-zong/VLGuard. Licence: MIT. Gated: accept
its terms there, and set HF_TOKEN. Pinned to the newest commit seen. `test.json`: a list of `id`, `image` (its path in
`test.zip`), `safe`, `harmful_category`, `harmful_subcategory` (unsafe pictures only) and `instr-resp`, a list of objects with
`instruction` and `response`, or for a safe picture `safe_instruction` and `unsafe_instruction` with theirs.

Its three subsets, as in the authors' `VLGuard_eval.py`, which answers greedily with 256 new tokens and counts refusals by
`judge=keyword judge.refusals=vlguard`:

    vlguard_safe           safe picture, safe instruction (safe_safes): a refusal is one too many
    vlguard_safe_unsafe    safe picture, unsafe instruction (safe_unsafes)
    vlguard_unsafe         unsafe picture, its first instruction (unsafes)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.pictures import Album
from vlsafe.data.tables import Table, column
from vlsafe.errors import CheckError
from vlsafe.eval.base import Axis, Expects, Item
from vlsafe.eval.sets.base import PublicBenchmark, Shown, find_table, text_of
from vlsafe.registry import register
from vlsafe.sources import DataSource

FILES = ("test.json", "data/test.json")
SOURCE = DataSource("ys-zong/VLGuard", "b0be37a1ab7accb14e10d6a0ec3ce62cfaff2d46")


class VLGuard(PublicBenchmark):
    """Base of the three: which pictures, and which of their instructions."""

    needs_image: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    page: ClassVar[str] = "https://huggingface.co/datasets/ys-zong/VLGuard"
    gated: ClassVar[bool] = True
    expects: ClassVar[Expects]
    safe: ClassVar[bool]
    instruction: ClassVar[str]

    def reads(self, field: str) -> Sequence[str] | None:
        return [FILES[0], "test.zip"]

    def read(self) -> Iterator[Item]:
        folder = self.source.fetch(self.reads("source"))
        table = find_table(folder, FILES, self.source)
        roots = [folder, folder / "data"] if folder.is_dir() else [folder.parent]
        album = Album([path for root in roots for path in (root / "test", root)], [root / "test.zip" for root in roots])
        for index in range(len(table)):
            row = table.row(index)
            if column(table, index, row, "safe", bool) is not self.safe:
                continue
            name = text_of(table, index, row, "image")
            category = str(row.get("harmful_category") or "safe")
            picture = album.find(name, f"{table.where(index)}: column 'image'")
            yield Item(name, category, self.asked(table, index, row), self.expects, "", Shown(picture))

    def asked(self, table: Table, index: int, row: Mapping[str, Any]) -> str:
        turns = column(table, index, row, "instr-resp", list)
        found = next((turn[self.instruction] for turn in turns if isinstance(turn, dict) and self.instruction in turn), None)
        if not isinstance(found, str) or not found.strip():
            raise CheckError(f"{table.where(index)}: column 'instr-resp' has no '{self.instruction}'")
        return found


@register("benchmark", "vlguard_safe")
@dataclass(frozen=True)
class Safe(VLGuard):
    axis: ClassVar[Axis] = "over_refusal"
    expects: ClassVar[Expects] = "comply"
    safe: ClassVar[bool] = True
    instruction: ClassVar[str] = "safe_instruction"

    source: DataSource = SOURCE


@register("benchmark", "vlguard_safe_unsafe")
@dataclass(frozen=True)
class SafeUnsafe(VLGuard):
    axis: ClassVar[Axis] = "multimodal_safety"
    expects: ClassVar[Expects] = "refuse"
    safe: ClassVar[bool] = True
    instruction: ClassVar[str] = "unsafe_instruction"

    source: DataSource = SOURCE


@register("benchmark", "vlguard_unsafe")
@dataclass(frozen=True)
class Unsafe(VLGuard):
    axis: ClassVar[Axis] = "multimodal_safety"
    expects: ClassVar[Expects] = "refuse"
    safe: ClassVar[bool] = False
    instruction: ClassVar[str] = "instruction"

    source: DataSource = SOURCE
