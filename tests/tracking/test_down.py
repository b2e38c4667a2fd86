"""A tracker that is down, slow or not set up: the sweep runs as ever, one line says what was not sent and how to send it."""

from __future__ import annotations

import csv
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.tracking.conftest import GRID, KEY, Tracked
from tests.tracking.loopback import Loopback


@contextmanager
def address(kind: str) -> Iterator[str]:
    if kind == "nothing listens":
        with socket.socket() as reserved:  # bound and not listening: refused
            reserved.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{reserved.getsockname()[1]}"
    else:
        with Loopback("500" if kind == "500" else "hang") as server:
            yield server.url


@pytest.mark.parametrize("kind", ["500", "hang", "nothing listens"])
def test_a_sweep_runs_whatever_the_server_does(untracked: Tracked, kind: str) -> None:
    with address(kind) as url:
        down = Tracked(untracked.outputs, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": url})
        # With the one that never answers a cell is added, too: its merge and evaluation must not wait.
        grid = ("safety_tune=none", "merge=linear", GRID[2]) if kind == "hang" else GRID
        done = down.train(*grid, "tracking.wait_seconds=3")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("tracking:")]
    assert len(lines) == 1
    assert re.match(r"tracking: (\d of (8|9) runs|its runs are) not sent \(", lines[0])
    assert "python launch/dashboard.py grid sync" in lines[0]
    with (down.sweep / "results.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["status"] for row in rows} == {"done"}
    assert ("linear" in {row["merge"] for row in rows}) == (kind == "hang")
    assert KEY not in "".join(p.read_text(errors="replace") for p in down.sweep.rglob("*") if p.is_file())
    if kind == "500":
        with Loopback() as server:
            later = Tracked(down.outputs, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url})
            sent = later.dashboard("grid", "sync")
            assert "tracking: 8 runs" in sent.stdout, sent.stdout + sent.stderr
            assert len(server.runs) == 8


def test_online_without_a_key_stops_before_anything_runs(untracked: Tracked) -> None:
    done = untracked.train(*GRID, "tracking.mode=online")
    assert done.returncode == 2
    assert "tracking.mode=online: no key for api.wandb.ai; set WANDB_API_KEY" in done.stderr
    assert done.stderr.count("\n") == 1


def test_disabled_by_wandb_itself_is_no_tracking(untracked: Tracked) -> None:
    done = Tracked(untracked.outputs, {"WANDB_MODE": "disabled"}).train(*GRID)
    assert done.returncode == 0
    assert "tracking" not in done.stdout
    assert not (untracked.outputs / "wandb").exists()


def test_a_tracker_that_breaks_is_one_line_and_a_log(untracked: Tracked) -> None:
    (untracked.outputs / "wandb").write_text("a file where a folder belongs")
    done = untracked.train(*GRID)
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("tracking:"))
    assert "not sent (FileExistsError" in line
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (untracked.sweep / "logs" / "tracking.log").read_text()
