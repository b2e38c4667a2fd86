"""The steps of a training as they are published: the whole log, and a curve for the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.train.checkpoint import read_log

CURVE_POINTS = 200


def curve(lines: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """(step, mean loss since the point before), at most `CURVE_POINTS` of them."""
    size = -(-len(lines) // CURVE_POINTS)
    chunks = [lines[i : i + size] for i in range(0, len(lines), size)]
    return [[chunk[-1]["step"], round(sum(line["loss"] for line in chunk) / len(chunk), 6)] for chunk in chunks]


def collect_logs(phases: Sequence[str], folders: Sequence[Path], out: Path) -> None:
    """`train_log.jsonl`: every step of every phase, in order."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as log:
        for phase, folder in zip(phases, folders, strict=True):
            if not (folder / "log.jsonl").exists():  # a phase that a snapshot came before
                continue
            for line in read_log(folder / "log.jsonl"):
                log.write(json.dumps({"phase": phase, **line}) + "\n")
