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

from vlsafe import lock
from vlsafe.lock import Lease

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


def test_release_leaves_a_lease_that_was_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    first = Lease(path)
    assert first.acquire()
    owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | {"token": "someone else"}))
    first.release()
    assert path.exists()
