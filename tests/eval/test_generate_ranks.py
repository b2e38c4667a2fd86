"""Several processes answer as one does, byte by byte: whatever their number, whoever stops or is killed, with any engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.conftest import Words
from tests.execute.ranks import run_ranks
from vlsafe.errors import CheckError, StageInterrupted
from vlsafe.eval import generate
from vlsafe.eval.base import Item
from vlsafe.eval.engines import Answer, Engine, HfEngine
from vlsafe.ranks import ALONE, Ranks
from vlsafe.stage import Execution, StageContext

ENGINE = HfEngine(max_new_tokens=6, batch_size=4)
CHECK_FAILED, STOPPED = 3, 75
Folder = Callable[[str], Path]


@dataclass(frozen=True)
class Echo(Engine):
    """As a third party would write one: it knows nothing of ranks. `twice` answers its first item again."""

    twice: bool = False

    def answer(
        self,
        model: Path,
        items: Sequence[Item],
        on_answer: Callable[[int, Answer], None],
        where: Execution,
        should_stop: Callable[[], bool],
    ) -> dict[str, Any]:
        for i in [*range(len(items)), *([0] if self.twice and items else [])]:
            on_answer(i, Answer(f"{items[i].prompt} \x1b[31m", "", 2, False))
        return {"new_tokens": 2 * len(items), "new_tokens_per_second": 1.0}


def rank(ranks: Ranks, out: Path, model: Path, engine: Engine, stop: dict[int, int], kill: dict[int, int]) -> int:
    """One stage, as this rank of it. `stop` and `kill`: after how many batches, or answers, a rank is asked to or killed."""
    asked = iter(range(10**6))

    def should_stop() -> bool:
        return next(asked) >= stop.get(ranks.rank, 10**6)

    ctx = StageContext(out=out, work=out / "work", parents={"model": model}, ranks=ranks, should_stop=should_stop)
    answered = iter(range(10**6))

    def progress(done: int, total: int, note: str) -> None:
        if next(answered) >= kill.get(ranks.rank, 10**6):
            os.kill(os.getpid(), signal.SIGKILL)

    ctx.progress = progress
    try:
        generate.run(Words(), engine, None, ctx)
    except StageInterrupted:
        return STOPPED
    except CheckError as error:
        (out / "error.txt").write_text(str(error))
        return CHECK_FAILED
    except Exception:
        traceback.print_exc(file=sys.__stderr__)
        return 1
    if ranks.main:
        (out / "facts.json").write_text(json.dumps(ctx.facts))
    return 0


def facts(out: Path) -> Any:
    return json.loads((out / "facts.json").read_text())


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("plain")
    assert rank(ALONE, out, model, ENGINE, {}, {}) == 0
    return (out / "responses.jsonl").read_bytes()


@pytest.mark.parametrize(("world", "size"), [(2, 4), (3, 24)])
def test_any_number_of_processes_gives_the_bytes_of_one(
    plain: bytes, model: Path, folder: Folder, world: int, size: int
) -> None:
    """With batches of 24 there are two, one with pictures and one without: nothing is left for the third process."""
    out = folder("out")
    assert run_ranks(world, rank, out, model, replace(ENGINE, batch_size=size), {}, {}) == [0] * world
    assert (out / "responses.jsonl").read_bytes() == plain
    found = facts(out)
    assert [did["asked"] for did in found["ranks"]] == [12, 12, 0][:world]
    assert found["new_tokens"] == sum(did["new_tokens"] for did in found["ranks"]) > 0
    assert found["new_tokens_per_second"] > 0


def test_one_process_that_is_stopped_stops_all_and_another_number_goes_on(plain: bytes, model: Path, folder: Folder) -> None:
    out = folder("out")
    assert run_ranks(2, rank, out, model, ENGINE, {1: 1}, {}) == [STOPPED, STOPPED]
    assert not (out / "responses.jsonl").exists()
    assert run_ranks(3, rank, out, model, ENGINE, {}, {}) == [0, 0, 0]
    assert (out / "responses.jsonl").read_bytes() == plain
    assert facts(out)["resumed"] == 12 + 4  # all of the main process's share, and the other's first batch


def test_kill_9_of_a_process_loses_no_whole_answer(plain: bytes, model: Path, folder: Folder) -> None:
    out = folder("out")
    ended = run_ranks(2, rank, out, model, ENGINE, {}, {1: 6})
    assert ended[1] == -signal.SIGKILL
    assert ended[0] not in (0, STOPPED)
    with (out / "work" / "responses.partial.1.jsonl").open("ab") as partial:
        partial.write(b'{"row": {"id": "item-0')  # what a kill in the middle of a line leaves
    assert rank(ALONE, out, model, ENGINE, {}, {}) == 0
    assert (out / "responses.jsonl").read_bytes() == plain
    assert facts(out)["resumed"] == 12 + 6


def test_an_engine_that_knows_nothing_of_ranks_is_shared_all_the_same(model: Path, folder: Folder) -> None:
    one, two = folder("one"), folder("two")
    assert rank(ALONE, one, model, Echo(), {}, {}) == 0
    assert run_ranks(2, rank, two, model, Echo(), {}, {}) == [0, 0]
    assert (one / "responses.jsonl").read_bytes() == (two / "responses.jsonl").read_bytes()
    assert (facts(two)["new_tokens"], facts(two)["new_tokens_per_second"]) == (48, 2.0)  # 24 each in 24 seconds


def test_an_item_that_is_answered_twice_stops_the_stage(model: Path, folder: Folder) -> None:
    out = folder("out")
    assert rank(ALONE, out, model, Echo(twice=True), {}, {}) == CHECK_FAILED
    assert "1 items were not answered exactly once, the first is 'item-00'" in (out / "error.txt").read_text()
    assert not (out / "responses.jsonl").exists()
