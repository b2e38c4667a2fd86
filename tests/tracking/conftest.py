"""One tiny sweep that really ran with `tracking=wandb`, offline; tests copy it and send it elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TINY

GRID = ("safety_tune=none,tiny_sft", "merge=none,ties", "sweep=grid")
KEY = "0123456789abcdef" * 2 + "01234567"
WANDB = Path(sys.executable).parent / "wandb"


@dataclass
class Tracked:
    """The launch scripts as a user without any account runs them, but for what `env` adds."""

    outputs: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def sweep(self) -> Path:
        return self.outputs / "sweeps" / "grid"

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO", "NETRC"))}
        home = self.outputs.parent / "home"
        home.mkdir(exist_ok=True)
        return {**kept, "HOME": str(home), "COLUMNS": "160", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **self.env}

    def command(self, *overrides: str) -> list[str]:
        return [
            sys.executable,
            str(ROOT / "launch" / "train.py"),
            *TINY,
            f"outputs={self.outputs}",
            "tracking=wandb",
            *overrides,
        ]

    def train(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return self._run(self.command(*overrides))

    def dashboard(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = str(ROOT / "launch" / "dashboard.py")
        return self._run([sys.executable, script, *arguments, "--outputs", str(self.outputs), *self.store()])

    def store(self) -> list[str]:
        return ["--store", str(self.outputs / "store")]

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.outputs.parent, env=self.environment(), timeout=120, check=False
        )

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        self.outputs.parent.mkdir(parents=True, exist_ok=True)
        with (self.outputs.parent / "shown.txt").open("ab") as shown:
            return subprocess.Popen(
                self.command(*overrides), stdout=shown, stderr=shown, cwd=self.outputs.parent, env=self.environment(),
                start_new_session=True,
            )  # fmt: skip

    def offline(self) -> dict[str, Path]:
        """The run files that were written to be synced, by the run's id; raises where one id has two."""
        found: dict[str, Path] = {}
        for path in (self.outputs / "wandb").glob("offline-run-*/run-*.wandb"):
            id = path.stem.removeprefix("run-")
            assert id not in found, f"{id} is there twice"
            found[id] = path
        return found

    def stage_ids(self, *kinds: str) -> list[str]:
        """The runs of the training stages, or of those of some kinds."""
        stages = json.loads((self.sweep / "plan.json").read_text())["stages"]
        return [f"{s['stage']}-{s['key']}" for s in stages if s["stage"] in (kinds or ("model", "adaptation", "safety_tune"))]

    def log_of(self, id: str) -> list[dict[str, Any]]:
        kind, _, key = id.rpartition("-")
        lines = (self.outputs / "store" / kind / key / "train_log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@dataclass
class Read:
    """A run file, by W&B's own reader."""

    run: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    exit_code: int | None


def read_back(path: Path) -> Read:
    command = [str(WANDB), "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    read = Read({}, {}, {}, [], None)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        kind = record["type"]
        if kind == "run":
            read.run = read.run or record["run"]
            read.config |= record["run"]["config"]["update"]
        elif kind == "config":
            read.config |= record["config"].get("update", {})
        elif kind == "summary":
            read.summary |= record["summary"].get("update", {})
        elif kind == "history":
            read.history.append(record["history"]["item"])
        elif kind == "exit":
            read.exit_code = record["exit"].get("exit_code", 0)
    return read


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    tracked = Tracked(tmp_path_factory.mktemp("tracked") / "outputs")
    done = tracked.train(*GRID)
    assert done.returncode == 0, done.stdout + done.stderr
    (tracked.outputs.parent / "shown.txt").write_text(done.stdout)
    return tracked


@pytest.fixture
def copied(swept: Tracked, tmp_path: Path) -> Tracked:
    shutil.copytree(swept.outputs, tmp_path / "outputs", symlinks=True)
    return Tracked(tmp_path / "outputs")


@pytest.fixture
def untracked(copied: Tracked) -> Tracked:
    """The same sweep before anything of it was sent."""
    shutil.rmtree(copied.outputs / "wandb")
    (copied.sweep / "tracking.json").unlink()
    return copied
