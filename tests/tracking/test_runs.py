"""What runs are made from records, without any tracker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.sweeps import labels, sweep
from vlsafe.app import check_not_swept
from vlsafe.errors import ConfigError
from vlsafe.plan import make_plan
from vlsafe.report.results import score
from vlsafe.store import Store
from vlsafe.sweep import open_sweep
from vlsafe.tracking import credentials, runs, state
from vlsafe.tracking.base import Destination
from vlsafe.tracking.components import WandbTracking
from vlsafe.tracking.runs import CURVE_AXIS

Grid = Callable[..., Any]


def test_no_setting_of_tracking_is_in_a_key_or_makes_another_cell(grid: Grid, tmp_path: Path) -> None:
    plain = grid("tracking=wandb")
    other = grid("tracking=wandb", "tracking.project=elsewhere", "tracking.upload_text=true", "tracking.mode=offline")
    none = grid("tracking=none")
    assert list(make_plan(plain).stages) == list(make_plan(other).stages) == list(make_plan(none).stages)
    joined = open_sweep(tmp_path / "s", "s", [*plain, *other, *none], [])
    assert len(joined.cells) == 1
    ids = {runs.cell_id(joined, make_plan(cells).cells[0]) for cells in (plain, other, none)}
    assert len(ids) == 1


def test_one_command_has_one_tracking() -> None:
    for name in ("tracking", "tracking.project"):
        with pytest.raises(ConfigError, match="one command has one value of it"):
            check_not_swept(["merge", name], [])


def test_wandb_is_the_default_and_its_settings_are_checked(grid: Grid) -> None:
    assert grid()[0].choices["tracking"] == "wandb"
    with pytest.raises(ConfigError, match=r"tracking\.mode=onlien: did you mean 'online'"):
        grid("tracking.mode=onlien")
    with pytest.raises(ConfigError, match=r"tracking\.project='a/b'"):
        grid("tracking.project=a/b")


def test_checkpoints_during_adaptation_are_a_curve_of_the_cell(tmp_path: Path) -> None:
    made = sweep(tmp_path, tunes=("none",), merges=("none",))
    direct = next(r for r in made if (r.role, r.benchmark) == ("adapted", "mw_direct"))
    folders = {step: labels(tmp_path / f"at{step}", "text_safety", step) for step in (30, 10, 20)}
    made += [replace(direct, step=step, labels=folder, final=False) for step, folder in folders.items()]
    done = score(made)
    assert runs.during_adaptation(done) == [
        {CURVE_AXIS: step, "adapted/asr/mw_direct": step / 100, "adapted/other_rate/mw_direct": 0.0} for step in (10, 20, 30)
    ]
    summary = runs.summary_of(done, "adapted")
    final = next(s for s in done if s.result is direct).headline.value
    assert summary["final/asr/mw_direct"] == summary["adapted/asr/mw_direct"] == final


def test_a_log_that_grows_is_read_in_whole_lines_over_all_phases(tmp_path: Path, grid: Grid) -> None:
    store = Store(tmp_path)
    stage = runs.training_stages(make_plan(grid()))[1]
    work = tmp_path / ".scratch" / f"{stage.kind}-{stage.key}-abc" / "work"
    for phase, text in (
        ("0-projector", '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n'),
        ("1-instruct", '{"step": 1, "loss": 1.0}\n{"ste'),
        ("10-last", '{"step": 1, "loss": 0.5}\n'),
    ):
        (work / phase).mkdir(parents=True)
        (work / phase / "log.jsonl").write_text(text)
    read = runs.training_log(store, stage)
    assert [(line["phase"], line["loss"]) for line in read] == [
        ("projector", 3.0), ("projector", 2.0), ("instruct", 1.0), ("last", 0.5),
    ]  # fmt: skip


def test_names_are_fit_for_columns_and_tags() -> None:
    assert runs.column("safety_tune.optimization.learning_rate") == "safety_tune_optimization_learning_rate"
    long = ["x" * 70 + end for end in "ab"]
    assert len({runs.tag(name) for name in long}) == 2
    assert all(len(runs.tag(name)) <= 64 for name in long)
    assert runs.sendable("half a pair: \ud83d") == "half a pair: ?"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"wandb offline x": 3}', '{"wandb offline x": {"runs": {"a": 1}}}'])
def test_a_damaged_memory_of_what_was_sent_only_costs_work(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / state.FILE).write_text(content)
    place = Destination("wandb offline x", "wandb x")
    assert state.sent_runs(state.read_state(folder), place.name) == {}
    assert not state.up_to_date(folder, WandbTracking(), place)
    assert state.known_runs(folder, place) == {}
    with state.changed(folder, place.name) as part:
        part["runs"]["a"] = {"digest": "d", "steps": 3, "group": "s"}
    assert state.known_runs(folder, place)["a"].steps == {place.name: 3}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_key_is_found_where_wandb_looks_for_it(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def way() -> str:
        place = WandbTracking().destination(nobody)
        return "none" if place is None else "online" if place.online else "offline"

    assert way() == "offline"
    (nobody / ".netrc").write_text("machine example.org login user password secret\n")
    assert way() == "offline"
    (nobody / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert way() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert way() == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert way() == "none"
    monkeypatch.delenv("WANDB_MODE")
    (nobody / ".netrc").write_text("machine\n")  # broken
    assert way() == "offline"
    settings = nobody / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://user:secret@own.example.org:8080\napi_key = abc\n")
    assert way() == "online"
    assert credentials.host() == "own.example.org:8080"
    assert "secret" not in str(WandbTracking().destination(nobody))
    assert json.dumps(state.inputs(nobody, WandbTracking()))
