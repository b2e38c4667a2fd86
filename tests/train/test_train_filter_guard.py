"""A filter with a guard: it is gone before the model is loaded that is trained, and nothing is asked of it twice."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import filter_rows
import pytest
import torch
import train_tiny as tiny

from vlsafe import registry
from vlsafe.errors import StageInterrupted
from vlsafe.eval.verdicts import shared
from vlsafe.execute.process import StopRequest
from vlsafe.execute.task import StageOrder, Task
from vlsafe.execute.worker import Worker
from vlsafe.files import write_json
from vlsafe.lock import Lease
from vlsafe.model import load
from vlsafe.ranks import ALONE
from vlsafe.registry import make
from vlsafe.stage import Execution, StageContext
from vlsafe.stand_in.benchmarks import write_guard
from vlsafe.store import Store
from vlsafe.store_commands import main

STEPS = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
LLAVA = {"name": "llava", "projector": STEPS, "instruct": STEPS}
SINGLE = {"name": "single_stage", "optimization": {**STEPS, "steps": 4}, "pairs": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("filter")
    write_guard(folder / "guard")
    tiny.llava(folder / "parent")
    return folder


def at(folder: Path, there: Path) -> Path:
    """A place of its own for a stage, with the guard of `folder`."""
    there.mkdir(parents=True, exist_ok=True)
    (there / "guard").symlink_to(folder / "guard")
    return there


@pytest.mark.parametrize("settings", [LLAVA, SINGLE])
def test_the_guard_is_gone_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, int]] = []
    living: list[weakref.ref[Any]] = []
    load_model = load.load_model

    def watched(path: Path, *args: Any, **kwargs: Any) -> Any:
        loaded.append((Path(path).name, sum(model() is not None for model in living)))
        model = load_model(path, *args, **kwargs)
        living.append(weakref.ref(model))
        return model

    monkeypatch.setattr(load, "load_model", watched)
    own = {"name": "llama_guard", "model": {"folder": str(folder / "guard")}, "batch_size": 4}
    ctx = StageContext(tmp_path / "out", tmp_path / "work", {"model": folder / "parent"}, Execution(device="cpu"))
    make("adaptation", {**settings, "filter": own}).run(filter_rows.Rows(), ctx)
    assert loaded == [("guard", 0), ("guard", 0), ("parent", 0)]  # for either purpose; then the model, with no guard beside it
    removed = {name: facts["rows_removed"] for phase in ctx.facts["phases"].values() for name, facts in phase["filter"].items()}
    assert removed == {"projector": 6, "instruct": 6}
    del loaded[:], living[:]
    faster = {**STEPS, "learning_rate": 2e-3}
    other = {**settings, **{name: faster for name in settings if name in ("projector", "instruct")}}
    again = StageContext(
        tmp_path / "more", tmp_path / "work-of-more", {"model": folder / "parent"}, Execution(device="cpu"),
        verdicts=tmp_path / "work" / "more.jsonl",
    )  # fmt: skip
    make("adaptation", {**other, "filter": own}).run(filter_rows.Rows(), again)
    assert loaded == [("parent", 0)]  # all verdicts are there


def test_a_stopped_filter_goes_on_and_another_training_asks_nothing_again(folder: Path, tmp_path: Path) -> None:
    undisturbed = filter_rows.sift(at(folder, tmp_path / "undisturbed"), ALONE)
    assert undisturbed["facts"]["instruct"]["rows_removed"] == 20 and undisturbed["asked"] == 50
    here, verdicts = at(folder, tmp_path / "here"), tmp_path / "verdicts" / "adaptation-a.jsonl"
    stopped = filter_rows.sift(here, ALONE, stop=3, verdicts=verdicts)
    assert stopped == {"stopped": True, "asked": 12}
    with verdicts.open("ab") as partial:
        partial.write(b'{"of": "0123", "harmf')  # what a kill in the middle of a line leaves
    assert filter_rows.sift(here, ALONE, verdicts=verdicts) == {**undisturbed, "asked": 50 - 12}
    other = verdicts.with_name("adaptation-b.jsonl")
    assert filter_rows.sift(here, ALONE, verdicts=other) == {**undisturbed, "asked": 0}
    assert other.read_bytes() == b""  # what others hold isn't copied


def test_of_two_trainings_at_a_time_one_asks_and_the_other_waits(folder: Path, tmp_path: Path) -> None:
    verdicts = tmp_path / "verdicts" / "adaptation-a.jsonl"
    filter_rows.sift(at(folder, tmp_path / "first"), ALONE, verdicts=verdicts.with_name("adaptation-b.jsonl"))
    lease, told = Lease(verdicts.parent / "lease.json"), list[str]()
    assert lease.acquire()
    ctx = StageContext(tmp_path / "out", tmp_path / "work", verdicts=verdicts, should_stop=lambda: len(told) > 1)
    with pytest.raises(StageInterrupted, match="while another stage had the same rows judged"), shared(ctx, told.append):
        pass
    assert told[0].startswith("the same rows are being judged by ")
    threading.Thread(target=lambda: (time.sleep(0.2), lease.release())).start()
    assert filter_rows.sift(at(folder, tmp_path / "second"), ALONE, verdicts=verdicts)["asked"] == 0


def test_a_worker_lets_trainings_share_what_a_filter_said_until_no_sweep_has_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.load()
    monkeypatch.setitem(registry._components, ("data", "rows"), filter_rows.Rows)
    store, orders = Store(tmp_path / "store"), []
    scratch = store.scratch("model", "m")
    shutil.copytree(folder / "parent", scratch, dirs_exist_ok=True)
    store.publish(scratch, "model", "m", {"version": 1})
    judge = {"name": "llama_guard", "model": {"folder": str(folder / "guard")}}
    for key, rate in (("a", 1e-3), ("b", 2e-3)):
        adaptation = {**LLAVA, "instruct": {**STEPS, "learning_rate": rate}, "filter": judge}
        settings = {"adaptation": adaptation, "data": {"name": "rows"}}
        parents = {"model": "model/m"}
        orders.append(
            StageOrder("adaptation", key, 1, {}, settings, parents, key, "llava", 1.0, None, None, None, verdicts="shared")
        )
    task = Task("t", tuple(orders), str(store.root), Execution(device="cpu"), str(tmp_path / "events"), str(tmp_path / "log"))
    assert Worker(task, ALONE, StopRequest()).run() == 0
    files = {str(id): path for id, path in store.kept_verdicts()}
    assert [(id, len(path.read_text().splitlines())) for id, path in files.items()] == [
        ("adaptation/a", 28),
        ("adaptation/b", 0),
    ]
    assert store.leftovers() == []
    write_json(tmp_path / "sweeps" / "s" / "plan.json", {"stages": [{"stage": "adaptation", "key": "a"}]})
    assert main(["--store", str(store.root), "--sweeps", str(tmp_path / "sweeps"), "gc", "--yes"]) == 0
    assert [str(id) for id, _ in store.kept_verdicts()] == ["adaptation/a"]
