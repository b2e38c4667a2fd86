"""Responses for the report's browser: each text once, compressed, and a seeded sample of the items where all would be too much.

The same items are taken for every model, so that answers to one question can be compared.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.eval.rows import LABELS, RESPONSES, read_rows
from vlsafe.report.points import judge
from vlsafe.report.results import CellResult
from vlsafe.report.source import Source
from vlsafe.report.text import printable, visible

SEED = 0
MAX_BYTES = 4_000_000  # of the embedded data, in base64
MAX_ROWS = 60_000  # what a browser filters without a pause
MAX_CHARACTERS = 4_000  # of one text; longer ones are cut, and say so


@dataclass
class Answers:
    """The rows of one artifact that are shown, of `total`; it may stand for several cells."""

    result: CellResult
    cells: list[str]
    folder: Path
    labels: list[str]
    ids: list[str]
    picked: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Browser:
    """`data` is base64 of zlib of JSON, read by the page's script. `shown` of `total` rows are in it."""

    data: str
    shown: int
    total: int
    each: int | None  # items of a benchmark that are taken; None: all
    unread: tuple[str, ...] = ()  # artifacts whose responses could not be read


def embed(source: Source, limit: int = MAX_BYTES) -> Browser:
    """As many rows as fit in `limit` bytes."""
    answers, unread = _answers(source)
    total = sum(a.total for a in answers)
    longest = max((a.total for a in answers), default=0)
    each = longest if total <= MAX_ROWS else max(1, MAX_ROWS // len(answers))
    while True:
        _pick(answers, each)
        packed = _pack(answers, unread)
        if len(packed) <= limit or each <= 1:
            break
        each = max(1, min(each - 1, int(0.9 * each * limit / len(packed))))
    shown = sum(len(a.picked) for a in answers)
    return Browser(packed, shown, total, None if each >= longest else each, tuple(dict.fromkeys(unread)))


def _answers(source: Source) -> tuple[list[Answers], list[str]]:
    found: dict[str, Answers] = {}
    unread = []
    for s in source.scored:
        r = s.result
        if r.key in found:
            found[r.key].cells.append(r.cell)
        elif r.status == "done" and r.labels is not None and r.key in source.responses:
            try:
                rows = read_rows(r.labels / LABELS)
            except (OSError, CheckError):
                unread.append(f"{r.cell} · {r.role} · {r.benchmark}")
                continue
            ids, labels = [str(row.get("id")) for row in rows], [str(row.get("label")) for row in rows]
            found[r.key] = Answers(r, [r.cell], source.responses[r.key], labels, ids)
    return list(found.values()), unread


def _pick(answers: Sequence[Answers], each: int) -> None:
    """`each` items of every artifact, those that come first by a seeded hash of benchmark and id, in their own order."""
    ranks: dict[tuple[str, str], bytes] = {}
    for a in answers:
        if a.total <= each:
            a.picked = list(range(a.total))
            continue
        for id in a.ids:
            if (a.result.benchmark, id) not in ranks:
                text = f"{SEED}/{a.result.benchmark}/{id}"
                ranks[a.result.benchmark, id] = hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()
        a.picked = sorted(sorted(range(a.total), key=lambda i: ranks[a.result.benchmark, a.ids[i]])[:each])


def _pack(answers: Sequence[Answers], unread: list[str]) -> str:
    texts, items, shown = _Table(), _Table(), []
    for a in answers:
        try:
            rows = _rows(a)
        except (OSError, CheckError, KeyError, TypeError):
            unread.append(f"{a.result.cell} · {a.result.role} · {a.result.benchmark}")
            a.picked = []
            continue
        r = a.result
        lines: list[int] = []
        for i, row in zip(a.picked, rows, strict=True):
            item = (
                texts.add(printable(str(row["id"]))), texts.add(printable(str(row.get("category", "")))),
                texts.add(_text(row.get("prompt", ""))), texts.add(_text(row.get("target", ""))),
                int(bool(row.get("image"))), int(row.get("expects") == "refuse"),
            )  # fmt: skip
            lines += [items.add(item), texts.add(_text(row.get("response", ""))), texts.add(printable(a.labels[i]))]
        shown.append(
            {"cells": [texts.add(printable(c)) for c in a.cells], "role": texts.add(printable(r.role)), "step": r.step,
             "benchmark": texts.add(printable(r.benchmark)), "judge": texts.add(judge(r)), "total": a.total, "rows": lines}
        )  # fmt: skip
    data = json.dumps({"texts": texts.values(), "items": items.values(), "answers": shown}, separators=(",", ":"))
    return base64.b64encode(zlib.compress(data.encode(), 6)).decode()


def _rows(a: Answers) -> list[Mapping[str, Any]]:
    """The picked rows; only these are parsed where answers and labels are in one order, as they are written."""
    with (a.folder / RESPONSES).open(encoding="utf-8") as handle:
        lines = handle.readlines()
    if len(lines) == a.total:
        try:
            rows = [json.loads(lines[i]) for i in a.picked]
        except ValueError as error:
            raise CheckError(f"{a.folder}: not rows") from error
        if all(str(row["id"]) == a.ids[i] for i, row in zip(a.picked, rows, strict=True)):
            return rows
    by_id = {str(row.get("id")): row for row in read_rows(a.folder / RESPONSES)}
    return [by_id[a.ids[i]] for i in a.picked]


def _text(text: object) -> str:
    shown = str(text)
    cut = len(shown) - MAX_CHARACTERS
    return visible(shown if cut <= 0 else f"{shown[:MAX_CHARACTERS]}… ({cut} more characters in the file)")


class _Table:
    """Each value once, by its position."""

    def __init__(self) -> None:
        self._at: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        return self._at.setdefault(value, len(self._at))

    def values(self) -> list[Any]:
        return list(self._at)
