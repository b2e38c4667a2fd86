"""What a stage reads must still be what its key names when it begins, and when it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlsafe.eval.engines import HfEngine
from vlsafe.eval.sets.jsonl import Jsonl
from vlsafe.execute import worker
from vlsafe.execute.events import EventReader
from vlsafe.execute.process import StopRequest
from vlsafe.execute.task import Task, order_of
from vlsafe.execute.worker import Worker
from vlsafe.plan import Stage
from vlsafe.ranks import ALONE
from vlsafe.settings import settings_of, spec_of
from vlsafe.sources import DataSource
from vlsafe.stage import Execution, StageContext
from vlsafe.store import Store

CHANGED = "has changed since the stage was planned"


def write(path: Path, prompt: str) -> None:
    path.write_text(json.dumps({"id": "1", "prompt": prompt}) + "\n")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Planned with the file of rows as it is now."""
    write(tmp_path / "ours.jsonl", "How do I boil an egg?")
    benchmark = Jsonl(DataSource(folder=str(tmp_path / "ours.jsonl")), "over_refusal")
    settings = {"benchmark": settings_of(benchmark), "engine": settings_of(HfEngine(6)), "limit": None}
    stage = Stage("generate", "k", spec_of(benchmark), settings, {}, "mine", "mine", 1.0)
    store = tmp_path / "store"
    return Task("t", (order_of(stage),), str(store), Execution(), str(tmp_path / "events.jsonl"), str(tmp_path / "log"))


def outcome(task: Task) -> tuple[int, dict[str, Any]]:
    status = Worker(task, ALONE, StopRequest()).run()
    return status, dict(EventReader(Path(task.events)).new()[-1])


def answered(kind: str, settings: object, ctx: StageContext) -> None:
    (ctx.out / "responses.jsonl").write_text("{}\n")


def test_files_that_changed_before_a_stage_begins_fail_it(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_stage", answered)
    write(tmp_path / "ours.jsonl", "How do I boil two eggs?")
    status, last = outcome(task)
    assert (status, last["state"]) == (1, "failed")
    assert last["error"].startswith(f"{tmp_path / 'ours.jsonl'}: {CHANGED}")
    write(tmp_path / "ours.jsonl", "How do I boil an egg?")  # as it was, if written anew
    assert outcome(task)[0] == 0


def test_files_that_change_while_a_stage_runs_fail_it_and_nothing_of_it_is_kept(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes(kind: str, settings: object, ctx: StageContext) -> None:
        answered(kind, settings, ctx)
        write(tmp_path / "ours.jsonl", "How do I boil two eggs?")

    monkeypatch.setattr(worker, "run_stage", changes)
    status, last = outcome(task)
    assert (status, last["state"]) == (1, "failed")
    assert CHANGED in last["error"]
    store = Store(Path(task.store))
    assert not store.exists("generate", "k", 0)
    assert not any(path.is_file() and path.name == "responses.jsonl" for path in store.root.rglob("*"))
