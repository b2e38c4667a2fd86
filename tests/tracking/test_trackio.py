"""`tracking=trackio`: the same runs in a database under `outputs`, read back through Trackio's own storage."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.tracking.conftest import GRID, Tracked

READ = """
import json
from trackio.sqlite_storage import SQLiteStorage as s
runs = s.get_run_records("study")
def whole(r):
    return {**r, "config": s.get_run_config("study", run_id=r["id"]), "logs": s.get_logs("study", r["name"], run_id=r["id"])}
print(json.dumps([whole(r) for r in runs]))
"""


def runs(tracked: Tracked) -> dict[str, dict[str, Any]]:
    env = {**tracked.environment(), "TRACKIO_DIR": str(tracked.outputs / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", READ], env=env, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len({run["id"] for run in found}) == len(found)
    return {run["id"]: run for run in found}


def test_the_same_runs_are_in_the_local_database_once(untracked: Tracked) -> None:
    trackio = ("tracking=trackio", "tracking.project=study")
    done = untracked.train(*GRID, *trackio)
    assert "tracking: 8 runs in outputs/trackio" in done.stdout, done.stdout + done.stderr
    assert not (untracked.outputs / "wandb").exists()
    found = runs(untracked)
    assert len(found) == 8
    _, id = untracked.stage_ids("model")
    log = untracked.log_of(id)
    assert [row.get("loss") for row in found[id]["logs"]] == [*(line["loss"] for line in log), None]
    assert found[id]["logs"][-1]["status"] == "done"
    cell = next(r for r in found.values() if r["config"]["kind"] == "cell" and r["config"]["merge"] == "ties")
    assert cell["config"]["_Group"] == "grid"
    assert "final/asr/mw_direct" in cell["logs"][-1]
    assert {"role", "metric", "value"} <= set(cell["logs"][-1]["results"]["_value"][0])
    assert "responses" not in cell["logs"][-1]

    assert "tracking" not in untracked.train(*GRID, *trackio).stdout
    (untracked.sweep / "tracking.json").unlink()
    assert untracked.train(*GRID, *trackio).returncode == 0
    again = runs(untracked)
    assert {id: len(run["logs"]) for id, run in again.items()} == {id: len(run["logs"]) for id, run in found.items()}
