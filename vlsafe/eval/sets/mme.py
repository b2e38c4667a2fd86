"""MME: yes-no questions about pictures, two for each picture (one of each answer), in 14 subtasks of perception and cognition.

Source: Fu et al., arXiv 2306.13394, as https://huggingface.co/datasets/lmms-lab/MME. Licence: none stated there. No gate.
Pinned to the newest commit seen. Columns: `question_id`, `image`, `question` (which ends in "Please answer yes or no."),
`answer` (Yes, No) and `category`, in `data/test-*.parquet` (0.9 GB).

Metrics, beside the accuracy over all questions (the headline, as it is comparable to other benchmarks and has an interval):

    score of a subtask = accuracy + accuracy+    in percent, so 200 at most; accuracy+: both questions of a picture are right
    mme_perception, mme_cognition = the sum over 10 and 4 subtasks, 2,000 and 800 at most
    mme_acc_plus = the share of pictures with both right

An answer that is neither yes nor no is wrong, as in the authors' evaluation. A sum is given only where every subtask was asked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vlsafe.data.pictures import Picture
from vlsafe.errors import CheckError
from vlsafe.eval.base import Axis, Item, Label
from vlsafe.eval.metrics import Metric, rate
from vlsafe.eval.sets.base import PublicBenchmark, Shown, balanced, check_pictures
from vlsafe.registry import register
from vlsafe.sources import DataSource

FILES = "data/test-*.parquet"
SOURCE = DataSource("lmms-lab/MME", "d6c9023f017b564f7b3ccccf5348166bce8fdbcd")
COLUMNS = ("question_id", "question", "answer", "category")
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class Question:
    """A row without its picture, and where that lies: file and row."""

    path: Path
    row: int
    question_id: str
    question: str
    answer: str
    category: str


@register("benchmark", "mme")
@dataclass(frozen=True)
class MME(PublicBenchmark):
    axis: ClassVar[Axis] = "helpfulness"
    needs_image: ClassVar[bool] = True
    licence: ClassVar[str] = "none stated"
    page: ClassVar[str] = "https://huggingface.co/datasets/lmms-lab/MME"

    source: DataSource = SOURCE

    def reads(self, field: str) -> Sequence[str] | None:
        return [FILES]

    def items(self, limit: int | None) -> Sequence[Item]:
        """Subtasks take turns by their share, and the two questions of a picture follow each other. Only the pictures that are
        asked about are read."""
        folder = self.source.fetch(self.reads("source"))
        pairs: dict[str, dict[str, list[Question]]] = {}
        for question in read(folder, self.source):
            pairs.setdefault(question.category, {}).setdefault(question.question_id, []).append(question)
        for category, found in pairs.items():
            odd = next((id for id, questions in found.items() if len(questions) != 2), None)
            if odd is not None:
                raise CheckError(f"{self.source.where()}: {category}: picture {odd} has {len(found[odd])} questions, not two")
        asked = [q for pair in balanced({c: list(found.values()) for c, found in pairs.items()}) for q in pair][:limit]
        pictures = read_pictures(asked)
        made, seen = [], dict[tuple[str, str], int]()
        for question, picture in zip(asked, pictures, strict=True):
            at = (question.category, question.question_id)
            seen[at] = seen.get(at, 0) + 1
            id = f"{question.category}/{question.question_id.removeprefix(question.category + '/')}/{seen[at]}"
            made.append(Item(id, question.category, question.question, "answer", question.answer, Shown(picture)))
        return check_pictures(self, made)

    @classmethod
    def own_metrics(cls, labels: Mapping[str, Label]) -> Sequence[Metric]:
        pairs: dict[str, dict[str, list[bool]]] = {}
        for id, label in labels.items():
            category, pair = id.split("/", 1)[0], id.rsplit("/", 1)[0]
            pairs.setdefault(category, {}).setdefault(pair, []).append(label == "correct")
        whole = {c: [pair for pair in found.values() if len(pair) == 2] for c, found in pairs.items()}
        both = [all(pair) for found in whole.values() for pair in found]
        sums = [("mme_perception", PERCEPTION), ("mme_cognition", COGNITION)]
        found = [total(name, [whole.get(c, []) for c in subtasks]) for name, subtasks in sums]
        return [rate("mme_acc_plus", sum(both), len(both)), *(metric for metric in found if metric is not None)]


def total(name: str, subtasks: Sequence[Sequence[Sequence[bool]]]) -> Metric | None:
    """The sum of the subtasks' scores, with the normal interval over pictures; None where a subtask was not asked."""
    if not all(subtasks):
        return None
    scores = [[50.0 * sum(pair) + 100.0 * all(pair) for pair in pairs] for pairs in subtasks]
    value, n = sum(statistics.fmean(s) for s in scores), sum(map(len, scores))
    if min(map(len, scores)) < 2:
        return Metric(name, value, n, None, None)
    half = 1.96 * math.sqrt(sum(statistics.variance(s) / len(s) for s in scores))
    return Metric(name, value, n, max(0.0, value - half), min(200.0 * len(scores), value + half))


def read(folder: Path, source: DataSource) -> Iterator[Question]:
    import pyarrow
    import pyarrow.parquet as pq

    paths = [folder] if folder.is_file() else sorted(folder.glob(FILES))
    if not paths:
        raise CheckError(f"{source.where()}: has no {FILES}: is it the data set that its setting says?")
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                absent = [c for c in (*COLUMNS, "image") if c not in file.schema_arrow.names]
                if absent:
                    raise CheckError(f"{path}: has no column '{absent[0]}'; it has: {', '.join(file.schema_arrow.names)}")
                rows = file.read(columns=list(COLUMNS)).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise CheckError(f"{path}: is no Parquet that can be read ({str(error).splitlines()[0]})") from None
        for index, row in enumerate(rows):
            texts = {name: row[name] for name in COLUMNS}
            wrong = next((name for name, value in texts.items() if not isinstance(value, str) or not value.strip()), None)
            if wrong is not None:
                raise CheckError(f"{path}: row {index}: column '{wrong}' must be text, not {texts[wrong]!r}")
            if texts["answer"].strip().rstrip(".").lower() not in ("yes", "no"):
                raise CheckError(f"{path}: row {index}: column 'answer' must be Yes or No, not {texts['answer']!r}")
            yield Question(path, index, **(texts | {"question": texts["question"].strip()}))


def read_pictures(asked: Sequence[Question]) -> list[Picture]:
    """The pictures of these rows, encoded as they are stored, one copy of those that two questions share."""
    import pyarrow.parquet as pq

    wanted: dict[Path, dict[int, int]] = {}
    for place, question in enumerate(asked):
        wanted.setdefault(question.path, {})[question.row] = place
    found: dict[int, Picture] = {}
    kept: dict[bytes, bytes] = {}
    for path, places in wanted.items():
        with pq.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=32, columns=["image"]):
                for value in batch.column(0):
                    if row in places:
                        data = content(value.as_py(), path, row)
                        found[places[row]] = Picture(f"{path}: row {row}", data=kept.setdefault(data, data))
                    row += 1
    return [found[place] for place in range(len(asked))]


def content(value: Any, path: Path, row: int) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise CheckError(f"{path}: row {row}: column 'image' holds no picture")
    return data
