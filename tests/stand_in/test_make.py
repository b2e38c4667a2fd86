"""+stand_in=tiny: tiny numbers and invented files in place of any command's, whole or not at all, and never mistaken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from vlsafe.errors import ConfigError, SourceError
from vlsafe.plan import make_plan
from vlsafe.sources import Source
from vlsafe.stand_in.make import FOLDER, MOST, cut, write, writers
from vlsafe.sweep import sweep_name
from vlsafe.train.split import optimizations

Grid = Callable[..., Any]
RELEASED = ("+experiment=llava15_released", "+stand_in=tiny", "merge=none")


def test_every_number_of_a_training_becomes_tiny_and_none_grows() -> None:
    given = {"steps": 5198, "batch_size": 1, "deep": [{"warmup_steps": 156, "learning_rate": 2e-5}], "rank": None, "steps_": 9}
    assert cut(given) == {"steps": MOST["steps"], "batch_size": 1, "deep": [{"warmup_steps": 1, "learning_rate": 2e-5}],
                          "rank": None, "steps_": 9}  # fmt: skip


def test_a_cell_runs_in_small_and_reads_its_own_mirror(grid: Grid, tmp_path: Path) -> None:
    (cell,) = grid(*RELEASED, f"outputs={tmp_path}", "safety_tune=sft_lora", "deepspeed=zero3", "tracking=wandb")
    assert cell.run.local == str(tmp_path / FOLDER)
    assert cell.choices["model"] == "llava15_7b.stand_in"
    assert cell.config["safety_tune"]["optimization"]["steps"] == MOST["steps"]  # what is recorded is what runs
    assert [o.batch_size for _, o in optimizations(cell.components["safety_tune"], "")] == [MOST["batch_size"]]
    assert cell.components["tracking"].component_name == cell.components["deepspeed"].component_name == "none"
    assert (tmp_path / FOLDER / "llava-hf" / "llava-1.5-7b-hf" / "config.json").is_file()
    again = grid(*RELEASED, f"outputs={tmp_path}", "safety_tune=sft_lora")[0]
    assert again.components["safety_tune"] == cell.components["safety_tune"]


def test_keys_are_those_of_the_content_that_is_read(grid: Grid, tmp_path: Path) -> None:
    real = make_plan(grid("+experiment=llava15_released", "merge=none"))
    one, other = (make_plan(grid(*RELEASED, f"outputs={tmp_path / name}")) for name in ("one", "other"))
    assert not set(real.stages) & set(one.stages)
    assert set(one.stages) == set(other.stages)  # the same bytes, wherever they lie
    changed = tmp_path / "one" / FOLDER / "lmsys" / "vicuna-7b-v1.5" / "generation_config.json"
    changed.write_text(changed.read_text() + "\n")
    assert not set(make_plan(grid(*RELEASED, f"outputs={tmp_path / 'one'}")).stages) & set(one.stages)


def test_a_sweep_on_stand_ins_is_named_so_whatever_it_is_called(grid: Grid, tmp_path: Path) -> None:
    run = grid(*RELEASED, f"outputs={tmp_path}", "sweep=mine")[0].run
    assert sweep_name(run, []) == "stand_in.mine"
    assert sweep_name(grid(*RELEASED, f"outputs={tmp_path}", "sweep=stand_in.mine")[0].run, []) == "stand_in.mine"


def test_a_mirror_of_the_users_own_is_never_written_to(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out local"):
        grid(*RELEASED, f"outputs={tmp_path}", f"local={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_a_hub_id_without_a_stand_in_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"model\.llm: there is no stand-in of someone/else"):
        write(Source("someone/else"), tmp_path, "model.llm")


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise OSError("full")

    monkeypatch.setattr("vlsafe.stand_in.make.writers", lambda: {"org/name": [broken]})
    with pytest.raises(OSError, match="full"):
        write(Source("org/name"), tmp_path, "x")
    assert not list(tmp_path.rglob("half"))
    assert not (tmp_path / "org" / "name").exists()


def test_one_repository_may_hold_a_data_set_and_a_benchmark(tmp_path: Path) -> None:
    assert len(writers()["ys-zong/VLGuard"]) == 2
    write(Source("ys-zong/VLGuard"), tmp_path, "x")
    there = {p.name for p in (tmp_path / "ys-zong" / "VLGuard").iterdir()}
    assert {"train.json", "test.json"} <= there


def test_an_unknown_kind_of_stand_in_is_refused(launch: Launch) -> None:
    done = launch.run("plan.py", "+stand_in=huge")
    assert done.returncode == 2
    assert "tiny" in done.stderr
