"""Rows of which a guard removes some, and a filter of them to run in a process of its own or on several ranks:
python filter_rows.py FOLDER [STOP]   (or under torchrun). FOLDER/guard is the guard; STOP: after so many rounds it stops.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import train_tiny as tiny

from vlsafe.data.rows import TrainingData
from vlsafe.errors import StageInterrupted
from vlsafe.eval import guard
from vlsafe.eval.llama_guard import LlamaGuard
from vlsafe.ranks import Ranks, join
from vlsafe.sources import Source
from vlsafe.stage import Execution, StageContext
from vlsafe.stand_in.benchmarks import UNCLEAR_WORD, UNSAFE_WORD
from vlsafe.train.filter import Wanted


@dataclass(frozen=True)
class Rows(TrainingData):
    """Of every five rows one is harmful, and one can't be told; all have different words."""

    component_name = "rows"

    def supervised(self, purpose: Any, n: int, seed: int) -> Sequence[Any]:
        made = []
        for i, row in enumerate(tiny.supervised(n, seed + len(purpose), 1.0 if purpose == "projector" else 0.5)):
            said = f"w{i % 40} w{i // 40} " + "w1 " * (i % 7) + {0: UNSAFE_WORD, 1: UNCLEAR_WORD}.get(i % 5, "w2")
            made.append({**row, "completion": [{"role": "assistant", "content": [{"type": "text", "text": said}]}]})
        return made


def sift(folder: Path, ranks: Ranks, stop: int | None = None, verdicts: Path | None = None) -> dict[str, Any]:
    """What 30 rows of instructions come to, and how many conversations this rank asked about."""
    asked: list[int] = []
    ask, asks = guard.ask, iter(range(1000))
    guard.ask = lambda opened, prompts: asked.append(len(prompts)) or ask(opened, prompts)  # type: ignore[func-returns-value]
    judge = LlamaGuard(model=Source(folder=str(folder / "guard")), batch_size=4)
    wanted = Wanted(Rows(), "instruct", 30, 0, judge, 0.5)
    ctx = StageContext(
        folder / "out", folder / "work", {}, Execution(device="cpu"), ranks=ranks, verdicts=verdicts,
        should_stop=lambda: ranks.any(ranks.main and stop is not None and next(asks) >= stop),
    )  # fmt: skip
    try:
        wanted.sift(ctx, lambda note: None)
    except StageInterrupted:
        return {"stopped": True, "asked": sum(asked)}
    finally:
        guard.ask = ask
    kept: Any = wanted.read()
    return {"kept": [str(row["completion"]) for row in kept], "facts": kept.facts["filter"], "asked": sum(asked)}


if __name__ == "__main__":
    ranks = join("cpu")
    told = sift(Path(sys.argv[1]), ranks, int(sys.argv[2]) if sys.argv[2:] else None)
    (Path(sys.argv[1]) / f"rank-{ranks.rank}.json").write_text(json.dumps(told))
    ranks.barrier()
    sys.stdout.flush()
    os._exit(0)  # as a worker ends: a thread of the process group may abort an interpreter that takes itself down
