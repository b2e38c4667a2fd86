"""VLGuard's training half: pictures with an instruction and the answer that a safe model gives.

Source: https://huggingface.co/datasets/ys-zong/VLGuard (`train.json`, `train.zip`), Zong et al., arXiv 2402.02207. Licence:
MIT by its card. Gated: accept the terms on that page and set HF_TOKEN. For research only; it holds harmful pictures.

2,000 pictures. `safe` says what a picture is: an unsafe one has one pair in `instr-resp` (`instruction`, `response`: a
refusal), a safe one has two (`safe_instruction` answered, `unsafe_instruction` refused), which are one conversation of two
turns, in an order that is drawn, as in the authors' convert_to_llava_format.py. Columns verified in that script and in
utils/utils.py of ys-zong/VLGuard. (Names in the zip begin with
`train/`, if they are as those of test.zip, which PyRIT reads below `test/`; without it they are found, too.)

The authors' *mixed* training is `safety_tune.order=joint`, their *post-hoc* training is `after`, with
`safety_tune.helpful`: nothing of that is decided here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.beside import album_of
from vlsafe.data.pictures import Album
from vlsafe.data.rows import Message, Purpose, SupervisedRow
from vlsafe.data.sets.base import Dataset, Rows, assistant, file_of, user, without_placeholder
from vlsafe.data.tables import Table, column, open_table
from vlsafe.errors import CheckError
from vlsafe.registry import register
from vlsafe.sources import DataSource

HUB = DataSource("ys-zong/VLGuard", "b0be37a1ab7accb14e10d6a0ec3ce62cfaff2d46")  # as the benchmark
SAFE = {"safe_instruction", "unsafe_instruction"}


@register("dataset", "vlguard")
@dataclass(frozen=True)
class VLGuard(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("safety",)
    licence: ClassVar[str] = "MIT; research only by its terms"
    page: ClassVar[str] = "https://huggingface.co/datasets/ys-zong/VLGuard"
    gated: ClassVar[bool] = True

    source: DataSource = HUB

    def reads(self, field: str) -> Sequence[str] | None:
        return ["train.json", "train.zip"]

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        folder = self.source.fetch(self.reads("source"))
        table = open_table([file_of(folder, "train.json", self.source)])
        album = album_of(folder, "train")
        return Rows(lambda i: row(table, i, album), range(len(table)))


def row(table: Table, index: int, album: Album) -> SupervisedRow:
    said = table.row(index)
    safe, pairs = column(table, index, said, "safe", bool), column(table, index, said, "instr-resp", list)
    asked = [
        next((k for k in pair if k in (*SAFE, "instruction")), None) if isinstance(pair, Mapping) else None for pair in pairs
    ]
    if (set(asked) != SAFE or len(asked) != 2) if safe else asked != ["instruction"]:
        expected = "safe_instruction and unsafe_instruction" if safe else "one instruction"
        raise CheckError(f"{table.where(index)}: column 'instr-resp' of a picture with safe={safe} must have {expected}")
    turns = list(zip(asked, pairs, strict=True))
    random.Random(index).shuffle(turns)
    messages: list[Message] = []
    for k, (name, pair) in enumerate(turns):
        question, answer = column(table, index, pair, str(name)), column(table, index, pair, "response")
        messages += [user(without_placeholder(question), pictures=int(k == 0)), assistant(answer)]
    image = album.find(column(table, index, said, "image"), f"{table.where(index)}: column 'image'")
    id = str(said.get("id", index))
    return {"id": id, "source": "vlguard", "prompt": messages[:1], "completion": messages[1:], "images": [image]}
