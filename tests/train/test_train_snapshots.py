"""Intermediate models of an adaptation: the same bits however they come about, and no trace in what training ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import train_killed as killed
import train_tiny as tiny

from vlsafe.errors import StageInterrupted
from vlsafe.model.load import load_model, load_processor
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import run_phases
from vlsafe.train.parts import part_of

STEPS = (0, 4, 9)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def whole(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[int, str], Path]:
    """The hash of the final weights and of each snapshot of one undisturbed run, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    final, _ = train(parent, folder, keep=STEPS)
    return final, {step: saved(folder / f"step-{step}") for step in STEPS}, folder


def train(
    parent: Path,
    folder: Path,
    keep: Any = (),
    step: int | None = None,
    stop_after: int | None = None,
    phases: Any = None,
) -> tuple[str, StageContext]:
    torch.set_num_threads(1)
    seen = [0]

    def progress(done: int, total: int, note: str = "") -> None:
        seen[0] = done

    def publish(write: Any, facts: dict[str, Any]) -> None:
        write(folder / f"step-{facts['step']}")

    ctx = StageContext(
        folder / "out", folder / "work", execution=Execution(device="cpu", checkpoint_seconds=0.0 if stop_after else 1e9),
        progress=progress, should_stop=lambda: stop_after is not None and seen[0] >= stop_after, step=step,
        snapshots=dict.fromkeys(keep, publish),
    )  # fmt: skip
    model, _ = run_phases(lambda: (load_model(parent, "cpu"), load_processor(parent)), phases or killed.phases("sft"), ctx)
    return killed.weights(model), ctx


def saved(folder: Path) -> str:
    return killed.weights(load_model(folder, "cpu"))


def test_keeping_snapshots_changes_nothing_of_what_training_ends_with(parent: Path, whole: Any, tmp_path: Path) -> None:
    final, snapshots, _ = whole
    assert killed.train("sft", parent, tmp_path, checkpoint_seconds=1e9) == final
    assert len({final, *snapshots.values()}) == len(STEPS) + 1


@pytest.mark.parametrize("step", STEPS)
def test_a_training_that_ends_at_a_step_gives_the_snapshot_of_it(parent: Path, whole: Any, tmp_path: Path, step: int) -> None:
    found, ctx = train(parent, tmp_path, step=step)
    assert found == whole[1][step]
    last = (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()[-1]
    assert ctx.facts["phases"].get("instruct", {"steps": 0})["steps"] == step
    assert f'"step": {step or 6},' in last


def test_the_first_snapshot_has_a_trained_projector_and_the_language_model_as_it_was(parent: Path, whole: Any) -> None:
    before, after = load_model(parent, "cpu").state_dict(), load_model(whole[2] / "step-0", "cpu").state_dict()
    changed = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"projector"}


def test_a_snapshot_has_the_parents_configuration(parent: Path, whole: Any) -> None:
    for step in STEPS:
        kept, own = load_model(whole[2] / f"step-{step}", "cpu"), load_model(parent, "cpu")
        assert kept.config.to_dict() | {"_name_or_path": ""} == own.config.to_dict() | {"_name_or_path": ""}
        assert kept.generation_config.to_dict() == own.generation_config.to_dict()
        assert load_processor(whole[2] / f"step-{step}").chat_template == load_processor(parent).chat_template


def test_stopped_between_snapshots_the_rest_is_taken_on_the_way_to_the_same_end(
    parent: Path, whole: Any, tmp_path: Path
) -> None:
    final, snapshots, _ = whole
    with pytest.raises(StageInterrupted):
        train(parent, tmp_path, keep=STEPS, stop_after=6 + 6)
    assert saved(tmp_path / "step-4") == snapshots[4]
    assert not (tmp_path / "step-9").exists()
    assert train(parent, tmp_path, keep=(9,))[0] == final
    assert saved(tmp_path / "step-9") == snapshots[9]


def test_a_snapshot_wanted_from_before_the_checkpoint_is_trained_for_again(parent: Path, whole: Any, tmp_path: Path) -> None:
    final, snapshots, _ = whole
    with pytest.raises(StageInterrupted):
        train(parent, tmp_path, stop_after=6 + 7)
    assert train(parent, tmp_path, keep=(4,))[0] == final
    assert saved(tmp_path / "step-4") == snapshots[4]


def test_snapshots_of_adapters_are_whole_models(parent: Path, tmp_path: Path) -> None:
    phases = killed.phases("lora")[:2]  # with dropout: saving must not draw
    undisturbed, _ = train(parent, tmp_path / "undisturbed", phases=phases)
    assert train(parent, tmp_path / "kept", keep=STEPS, phases=phases)[0] == undisturbed
    assert saved(tmp_path / "kept" / "step-4") == train(parent, tmp_path / "until", step=4, phases=phases)[0]
    assert load_model(tmp_path / "kept" / "step-4", "cpu").state_dict().keys() == load_model(parent, "cpu").state_dict().keys()
