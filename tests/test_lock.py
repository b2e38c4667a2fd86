"""Leases: one holder at a time, and a dead one loses its lease at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlsafe import lock
from vlsafe.execute import worker
from vlsafe.execute.events import EventReader
from vlsafe.execute.process import StopRequest
from vlsafe.execute.task import StageOrder, Task
from vlsafe.execute.worker import Worker
from vlsafe.lock import Lease
from vlsafe.ranks import ALONE
from vlsafe.stage import Execution, StageContext
from vlsafe.store import Store

HOLD = """
import sys, time
from pathlib import Path
from vlsafe.lock import Lease
print(Lease(Path(sys.argv[1])).acquire(), flush=True)
time.sleep(60)
"""


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    leases = [Lease(tmp_path / "key.json") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(Lease.acquire, leases))
    assert sum(got) == 1
    leases[got.index(True)].release()
    assert Lease(tmp_path / "key.json").acquire()


def test_a_killed_holder_loses_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        assert not Lease(path).acquire()
        holder.send_signal(signal.SIGKILL)
    assert Lease(path).acquire()


def test_a_holder_elsewhere_keeps_it_while_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps({"host": "another-machine", "pid": 1, "start": "1", "token": "x"}))
    assert not Lease(path).acquire()
    old = time.time() - lock.STALE_SECONDS - 1
    os.utime(path, (old, old))
    assert Lease(path).acquire()


def test_a_reused_process_id_does_not_keep_a_dead_holders_lease(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    holder = Lease(path)
    assert holder.acquire()
    owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | {"start": "1"}))  # this very process id, started at another time
    assert Lease(path).acquire()


def test_clocks_that_differ_do_not_cost_a_holder_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps({"host": "another-machine", "pid": 1, "start": "1", "token": "x"}))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10 * lock.STALE_SECONDS)
    assert not Lease(path).acquire()


def test_a_process_id_means_nothing_in_another_container(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    held = Lease(path)
    assert held.acquire()
    owner = json.loads(path.read_text())
    with subprocess.Popen(["true"]) as gone:
        pass
    path.write_text(json.dumps(owner | {"machine": "the same host, other process ids", "pid": gone.pid}))
    assert not Lease(path).acquire()


def test_a_second_taker_gives_a_fresh_lease_back(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    dead = {"host": "another-machine", "pid": 1, "start": "1", "token": "dead"}
    fresh = Lease(path)
    assert fresh.acquire()
    second = Lease(path)
    assert not second._bury(dead)  # it had judged by what was there before
    assert fresh._mine()
    assert list(tmp_path.iterdir()) == [path]


def test_a_holder_is_told_that_its_lease_was_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    path = tmp_path / "key.json"
    hung = Lease(path)
    assert hung.acquire()
    assert not hung.lost.wait(0.2)
    path.unlink()
    taker = Lease(path)
    assert taker.acquire()
    assert hung.lost.wait(10)
    hung.release()
    assert taker._mine()


def test_a_link_whose_reply_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request that had no answer, and says that the link is there."""
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    path = tmp_path / "key.json"
    assert Lease(path).acquire()
    assert not Lease(path).acquire()


def test_release_leaves_a_lease_that_was_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    first = Lease(path)
    assert first.acquire()
    owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | {"token": "someone else"}))
    first.release()
    assert path.exists()


def test_a_stage_that_was_taken_over_is_waited_for_and_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process hangs for a minute, another takes its stage over and its scratch away: it ends with the other's artifact."""
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    store = Store(tmp_path / "store")
    order = StageOrder("merge", "k", 1, {}, {}, {}, "a merge", "merge", 1.0, None)
    task = Task("t", (order,), str(store.root), Execution(), str(tmp_path / "events.jsonl"), str(tmp_path / "log"))
    other = store.lease("merge", "k")

    def hang(kind: str, settings: object, ctx: StageContext) -> None:
        store.lease("merge", "k").path.unlink()  # as a taker does once the heart has stopped
        assert other.acquire()
        time.sleep(0.2)
        scratch = store.scratch("merge", "k")
        (scratch / "file").write_text("theirs")
        store.publish(scratch, "merge", "k", {"version": 1})
        other.release()
        (ctx.out / "file").write_text("ours")

    monkeypatch.setattr(worker, "run_stage", hang)
    assert Worker(task, ALONE, StopRequest()).run() == 0
    assert (store.read("merge", "k") / "file").read_text() == "theirs"
    assert [e["state"] for e in EventReader(tmp_path / "events.jsonl").new()] == ["running", "found"]
