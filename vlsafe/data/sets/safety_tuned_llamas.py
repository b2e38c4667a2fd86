"""The text safety pairs of Safety-Tuned LLaMAs: instructions that should be refused, with refusals that GPT-3.5 wrote.

Source: https://github.com/vinid/safety-tuned-llamas (`data/training/safety_only_data_Instructions.json`), Bianchi et al.,
arXiv 2309.07875. It is not on the hub: clone it and set `source: {folder: …}`, or put it at vinid/safety-tuned-llamas in a
mirror (`local=FOLDER`). Licence: none is stated in the repository (its paper's questions come from Anthropic's red-teaming
data); treat it as non-commercial and ask its authors. No gate. Columns, verified in the repository's training script:
`instruction`, `input`, `output`.

The study adds 100 to 2,000 of them to general data: `rows` of its share says how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.rows import Purpose, SupervisedRow
from vlsafe.data.sets.base import Dataset, Rows, assistant, file_of, user
from vlsafe.data.tables import Table, column, open_table
from vlsafe.errors import SourceError
from vlsafe.registry import register
from vlsafe.sources import DataSource

HUB = DataSource("vinid/safety-tuned-llamas")
FILE = "data/training/safety_only_data_Instructions.json"


@register("dataset", "safety_tuned_llamas")
@dataclass(frozen=True)
class SafetyTunedLlamas(Dataset):
    serves: ClassVar[tuple[str, ...]] = ("safety",)
    pictured: ClassVar[bool] = False
    licence: ClassVar[str] = "none stated"
    page: ClassVar[str] = "https://github.com/vinid/safety-tuned-llamas"
    non_commercial: ClassVar[bool] = True

    source: DataSource = HUB

    def rows(self, purpose: Purpose) -> Sequence[Any]:
        if self.source.path is None:
            raise SourceError(
                f"dataset safety_tuned_llamas: is not on the hub: git clone {self.page} and set source: {{folder: …}}, or put"
                f" it at {HUB.id} in a mirror (local=FOLDER)"
            )
        table = open_table([file_of(self.source.fetch(), FILE, self.source)])
        return Rows(lambda i: row(table, i), range(len(table)))


def row(table: Table, index: int) -> SupervisedRow:
    said = table.row(index)
    asked = [column(table, index, said, "instruction"), said.get("input") or ""]
    answer = column(table, index, said, "output")
    prompt = [user("\n".join(text for text in asked if text))]
    return {
        "id": str(index),
        "source": "safety_tuned_llamas",
        "prompt": prompt,
        "completion": [assistant(answer)],
        "images": [],
    }
