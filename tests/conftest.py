"""What tests share: composed cells without running anything, and the launch scripts on the tiny microworld of `tests/conf`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY_CONF = f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]"
TINY = (TINY_CONF, "+experiment=tiny")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def grid() -> Iterator[Callable[..., object]]:
    """`grid("safety_tune=none,sft", "merge=ties")`: the cells that the command would have."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from vlsafe.app import cells_of
    from vlsafe.cells import Cell
    from vlsafe.hydra_plugins import Grid, compose_all, register_plugins, swept_keys, without, yaml_read_once

    register_plugins()

    def compose(*overrides: str) -> list[Cell]:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.types import RunMode

        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [TINY_CONF], run_mode=RunMode.MULTIRUN)
        fixed = [o for o in overrides if o.startswith(("+experiment", "hydra."))]
        sweeper = loader.load_configuration("config", [TINY_CONF, *fixed], run_mode=RunMode.MULTIRUN).hydra.sweeper
        swept = [*(f"{k}={v}" for k, v in (sweeper.params or {}).items()), *overrides]
        jobs = BasicSweeper.split_arguments(OverridesParser.create(config_loader=loader).parse_overrides(swept), None)[0]
        jobs = without(jobs, sweeper.get("exclude") or [])
        with yaml_read_once():
            configs = compose_all(loader, master, [[TINY_CONF, *job] for job in jobs])
        return cells_of(Grid(configs, swept_keys(jobs), list(overrides)))

    with hydra.initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        yield compose


@dataclass(frozen=True)
class Launch:
    """Runs the launch scripts as a user would, with outputs in a folder of the test's own."""

    outputs: Path

    def command(self, script: str, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "launch" / script), *arguments]

    def run(self, script: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
        return subprocess.run(
            self.command(script, *arguments),
            capture_output=True,
            text=True,
            cwd=self.outputs.parent,
            env=env,
            **options,  # type: ignore[call-overload]
        )

    def train(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return self.run("train.py", *TINY, f"outputs={self.outputs}", *overrides)

    def plan(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return self.run("plan.py", *TINY, f"outputs={self.outputs}", *overrides)


@pytest.fixture
def copied(finished: Launch, tmp_path: Path) -> Launch:
    """The outputs of the module's own fixture `finished`, to be damaged or run on."""
    shutil.copytree(finished.outputs, tmp_path / "outputs", symlinks=True)
    return Launch(tmp_path / "outputs")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path / "outputs")
