"""LLaVA-Pretrain: 558K pictures of LAION, CC and SBU with BLIP's captions, which the projector learns from.

Source: https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain (`blip_laion_cc_sbu_558k.json`, 181 MB, and `images.zip`,
27.4 GB with 558,128 pictures), Liu et al., arXiv 2304.08485, at the commit that public code pins. Licence: "other" by its card:
the pictures stay under the terms of CC-3M, LAION and SBU. No gate. Columns, as for LLaVA-Instruct: `id`, `image`,
`conversations` with one question and one answer each.

Pictures are read from `images.zip` as it is, or from the folder `images` beside it where it has been unpacked, which is
quicker. (Public scripts unpack it into `images/`, so its names don't begin so; both are found.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.beside import album_of
from vlsafe.data.rows import Purpose
from vlsafe.data.sets.base import Dataset, Rows, file_of
from vlsafe.data.sets.conversations import conversation
from vlsafe.data.tables import open_table
from vlsafe.registry import register
from vlsafe.sources import DataSource

HUB = DataSource("liuhaotian/LLaVA-Pretrain", "70f9d1e5e1a697fe35830875cfc7de1dd590d727")
FILE = "blip_laion_cc_sbu_558k.json"


@register("dataset", "llava_pretrain")
@dataclass(frozen=True)
class LlavaPretrain(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("projector",)
    licence: ClassVar[str] = "other: the terms of CC-3M, LAION and SBU"
    page: ClassVar[str] = "https://huggingface.co/datasets/liuhaotian/LLaVA-Pretrain"

    source: DataSource = HUB
    file: str = FILE

    def reads(self, field: str) -> Sequence[str] | None:
        return [self.file, "images.zip"]

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        folder = self.source.fetch(self.reads("source"))
        table, album = open_table([file_of(folder, self.file, self.source)]), album_of(folder)
        return Rows(lambda i: conversation(table, i, table.row(i), album, self.component_name), range(len(table)))
