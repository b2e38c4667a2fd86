"""With a key: the real client against a server on the loopback. What it is sent, and that nothing of it is sent twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.tracking.conftest import GRID, KEY, WANDB, Tracked
from tests.tracking.loopback import Loopback

LONG = ("safety_tune=none", "merge=none", "sweep=grid", "adaptation.instruct.steps=1000", "checkpoint_seconds=0.2")


def at(tracked: Tracked, server: Loopback) -> Tracked:
    return Tracked(tracked.outputs, {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url})


def steps(server: Loopback, id: str) -> list[int]:
    return [line["_step"] for line in server.runs[id].history]


def files_with(text: str, folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and text.encode() in p.read_bytes()]


def test_a_sweep_is_sent_once_however_often_it_is_asked_for(untracked: Tracked) -> None:
    with Loopback() as server:
        tracked = at(untracked, server)
        done = tracked.train(*GRID, "tracking.project=study")
        assert f"tracking: 8 runs in {server.url}/someone/study" in done.stdout
        stages = tracked.stage_ids()
        cells = [run for id, run in server.runs.items() if id not in stages]
        assert len(server.runs) == 8
        assert {(run.group, run.project, run.exit_code) for run in server.runs.values()} == {("grid", "study", 0)}
        assert {run.job_type for run in cells} == {"cell"}
        assert {(run.config["safety_tune"], run.config["merge"]) for run in cells} == {
            (tune, merge) for tune in ("none", "tiny_sft") for merge in ("none", "ties")
        }
        assert all("final/asr/mw_direct" in run.summary and "results" in run.summary for run in cells)
        for id in stages:
            assert steps(server, id) == list(range(len(tracked.log_of(id))))

        writes = {id: run.inserted for id, run in server.runs.items()}
        assert "tracking" not in tracked.train(*GRID, "tracking.project=study").stdout
        assert tracked.dashboard("grid", "sync").returncode == 0
        assert {id: run.inserted for id, run in server.runs.items()} == writes
        (tracked.sweep / "tracking.json").unlink()  # what was sent is forgotten, and the server asked
        assert tracked.dashboard("grid", "sync").returncode == 0
        assert len(server.runs) == 8
        for id in stages:
            assert steps(server, id) == list(range(len(tracked.log_of(id))))

        grown = tracked.train(GRID[0], "merge=linear", GRID[2], "tracking.project=study")
        assert "tracking: 10 runs" in grown.stdout
        assert len(server.runs) == 10
        assert {run.exit_code for run in server.runs.values()} == {0}

        assert not any(KEY.encode() in body for body in server.raw)
    assert not files_with(KEY, tracked.outputs.parent)
    assert not list((tracked.outputs / "wandb").glob("*run-*"))  # what the server has is not kept twice


def test_an_offline_run_that_was_synced_or_not_is_not_doubled_online(copied: Tracked) -> None:
    record = copied.sweep / "sweep.json"
    record.write_text(record.read_text().replace('"mode": "auto"', '"mode": "offline"'))  # as on nodes without a network
    with Loopback() as server:
        tracked = at(copied, server)
        assert tracked.dashboard("grid", "sync").returncode == 0
        assert len(server.runs) == 8
        assert not tracked.offline()  # else `wandb sync` would add the rows once more
        offline = Tracked(copied.outputs, {"WANDB_BASE_URL": server.url})
        _, id = offline.stage_ids("model")
        assert offline.dashboard("grid", "sync", "--resend").returncode == 0
        path = offline.offline()[id].parent
        subprocess.run([str(WANDB), "sync", path], env=tracked.environment(), check=True, capture_output=True, timeout=60)
        assert steps(server, id) == list(range(len(tracked.log_of(id))))


def test_curves_come_while_a_stage_trains_and_a_stop_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with Loopback() as server:
        tracked = at(Tracked(tmp_path / "outputs"), server)
        tracked.env["WANDB__FILE_STREAM_TRANSMIT_INTERVAL"] = "0.3"  # W&B's client waits 15 s otherwise
        assert tracked.train("adaptation=none", "safety_tune=none", "tracking=none").returncode == 0  # the models, once
        process = tracked.start(*LONG)

        training = tracked.outputs / "store" / ".scratch"

        def adaptation() -> list[int]:
            return next((steps(server, id) for id in server.runs if id.startswith("adaptation-")), [])

        deadline = time.monotonic() + 100
        worker: int | None = None
        while len(adaptation()) < 20 and process.poll() is None and time.monotonic() < deadline:
            if worker is None and any(
                log.read_text().count("\n") >= 20 for log in training.glob("*/work/1-instruct/log.jsonl")
            ):
                # Held there, so that it can't be through before the tracker has told what it saw.
                worker = json.loads(next(training.parent.glob(".locks/adaptation-*.json")).read_text())["pid"]
                os.kill(worker, signal.SIGSTOP)
            time.sleep(0.02)
        assert process.poll() is None, (tmp_path / "shown.txt").read_text()
        assert len(adaptation()) >= 20
        assert worker is not None
        os.killpg(process.pid, signal.SIGINT)
        os.kill(worker, signal.SIGCONT)
        assert process.wait(timeout=60) == 130
        stopped = next(run for id, run in server.runs.items() if id.startswith("adaptation-"))
        assert (stopped.exit_code, stopped.summary["status"]) == (1, "interrupted")
        seen = len(stopped.lines)

        done = tracked.train(*LONG)
        assert done.returncode == 0, done.stdout + done.stderr
        (id,) = tracked.stage_ids("adaptation")
        log = tracked.log_of(id)
        assert len(log) > seen
        assert steps(server, id) == list(range(len(log)))
        assert [row["loss"] for row in server.runs[id].history] == [line["loss"] for line in log]
        assert (stopped.exit_code, stopped.summary["status"]) == (0, "done")


def test_killed_with_its_parent_it_leaves_no_process(tmp_path: Path) -> None:
    with Loopback("hang") as server:
        tracked = at(Tracked(tmp_path / "outputs"), server)
        process = tracked.start(*LONG)
        family: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while len(family) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            for child in psutil.Process(process.pid).children():
                if "vlsafe.tracking.process" in child.cmdline():
                    family = [child, *child.children(recursive=True)]
        assert len(family) == 2, "the tracking process and W&B's own were not seen"
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
