"""Stages that publish a released model: in the plan as any other, with nothing in their key that they don't read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vlsafe.errors import ConfigError
from vlsafe.plan import make_plan

Grid = Callable[..., Any]
RELEASED = ("adaptation=checkpoint", "safety_tune=checkpoint", "merge=linear")


def stages(grid: Grid, *overrides: str) -> dict[str, Any]:
    """The stage of each role."""
    plan = make_plan(grid(*overrides))
    return {role: plan.stages[id] for role, id in plan.cells[0].roles.items()}


def test_the_key_of_a_released_model_holds_no_training_data(grid: Grid) -> None:
    one, other = stages(grid, *RELEASED), stages(grid, *RELEASED, "data.borderline=0.5", "data.planted=0.1")
    for role in ("adapted", "tuned", "merged"):
        assert one[role].key == other[role].key
        assert "data" not in one[role].spec
        assert "data" not in one[role].settings
    trained = [stages(grid, "adaptation=checkpoint", "safety_tune=sft", f"data.borderline={x}")["tuned"] for x in (0.5, 0.4)]
    assert trained[0].key != trained[1].key


def test_another_commit_is_another_model(grid: Grid) -> None:
    commit = "a" * 40
    one, other = stages(grid, *RELEASED), stages(grid, *RELEASED, f"safety_tune.source.revision={commit}")
    assert one["adapted"].key == other["adapted"].key
    assert one["tuned"].key != other["tuned"].key


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("adaptation=checkpoint", "safety_tune=sft", "safety_tune.order=joint"), r"order=joint: adaptation=checkpoint"),
        (("adaptation=checkpoint", "safety_tune=sft", "safety_tune.order=before"), r"order=before: adaptation=checkpoint"),
        (("safety_tune=checkpoint", "safety_tune.order=before"), r"order=before: safety_tune=checkpoint"),
    ],
)
def test_a_released_model_can_only_come_after(overrides: tuple[str, ...], message: str, grid: Grid) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(*overrides)


@pytest.mark.parametrize(
    ("overrides", "option"),
    [
        (("+experiment=qwen25_vl_released", "model=qwen25_vl_7b", "adaptation=qwen25_vl_3b_released"), "qwen25_vl_7b_released"),
        (("+experiment=llava15_released", "adaptation=qwen25_vl_3b_released"), "checkpoint"),
        (("+experiment=qwen25_vl_released", "model=llava15_7b"), "checkpoint"),
    ],
)
def test_released_models_that_cant_fit_are_refused_before_a_file_of_them_is_read(
    overrides: tuple[str, ...], option: str, grid: Grid
) -> None:
    with pytest.raises(ConfigError, match=rf"does not fit a model that is taken from .*: set adaptation={option}, or"):
        grid(*overrides)
    grid(*overrides, "+adaptation.source.folder=/mine")
    grid(*overrides, "adaptation.source.id=mine/tuned-further", "adaptation.source.revision=null")
