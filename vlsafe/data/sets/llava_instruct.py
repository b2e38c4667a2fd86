"""LLaVA-Instruct, the mixture of 665K instructions that LLaVA-1.5's second stage learns from.

Source: https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K, `llava_v1_5_mix665k.json` (1.03 GB, 665,298 rows),
Liu et al., arXiv 2310.03744. Licence: CC-BY-4.0 by its card, which also asks to abide by OpenAI's terms, since GPT-4 wrote
the answers. No gate. Columns, verified in haotian-liu/LLaVA's reader: `id`, `image` (missing in text rows),
`conversations`.

The pictures are not on the hub: COCO train2017, GQA, OCR-VQA, TextVQA and Visual Genome are downloaded from their own sites
(LLaVA's README, "Visual instruction tuning") into one folder, which `images` names:

    coco/train2017  gqa/images  ocr_vqa/images  textvqa/train_images  vg/VG_100K  vg/VG_100K_2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.beside import album_of
from vlsafe.data.pictures import Album
from vlsafe.data.rows import Purpose
from vlsafe.data.sets.base import Dataset, Rows, file_of
from vlsafe.data.sets.conversations import conversation
from vlsafe.data.tables import open_table
from vlsafe.errors import CheckError
from vlsafe.registry import register
from vlsafe.sources import DataSource

HUB = DataSource("liuhaotian/LLaVA-Instruct-150K", "9d451dc7629cfe0469f6ae4432b765cd603d5fcb")
FILE = "llava_v1_5_mix665k.json"
PARTS = ("coco", "gqa", "ocr_vqa", "textvqa", "vg")


@register("dataset", "llava_instruct")
@dataclass(frozen=True)
class LlavaInstruct(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("instruct",)
    licence: ClassVar[str] = "CC-BY-4.0, and OpenAI's terms for what GPT-4 wrote"
    page: ClassVar[str] = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K"

    source: DataSource = HUB
    images: DataSource | None = None  # the folder with coco, gqa, ocr_vqa, textvqa and vg below it; null: beside the JSON
    file: str = FILE

    def reads(self, field: str) -> Sequence[str] | None:
        return [self.file] if field == "source" else None

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        folder = self.source.fetch(self.reads("source"))
        table = open_table([file_of(folder, self.file, self.source)])
        album = album_of(folder) if self.images is None else Album([self.images.fetch()])
        if not any((root / part).is_dir() for root in album.folders for part in PARTS):
            raise CheckError(
                f"dataset llava_instruct: no folder {', '.join(PARTS)} below {', '.join(map(str, album.folders))}: its pictures"
                " aren't on the hub; download them from their own sites (docs/data.md) and set images: {folder: …}"
            )
        return Rows(lambda i: conversation(table, i, table.row(i), album, self.component_name), range(len(table)))
