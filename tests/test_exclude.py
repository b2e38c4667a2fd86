"""`hydra.sweeper.exclude`: cells of a product that can't be, or that nobody wants, are left out by rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vlsafe.errors import ConfigError
from vlsafe.hydra_plugins import without

Grid = Callable[..., Any]
JOBS = [
    ["safety_tune=sft", "safety_tune.order=after"],
    ["safety_tune=sft", "+safety_tune.order=joint"],
    ["safety_tune=dpo", "+safety_tune.order=joint"],
]


def test_a_rule_leaves_out_what_has_one_of_the_values_of_each_setting() -> None:
    assert without(JOBS, []) == JOBS
    assert without(JOBS, ["safety_tune=dpo,kto safety_tune.order=joint"]) == JOBS[:2]
    assert without(JOBS, ["safety_tune.order=joint"]) == JOBS[:1]
    assert without(JOBS, ["merge=ties safety_tune.order=joint"]) == JOBS


@pytest.mark.parametrize("rule", ["", "safety_tune", "safety_tune="])
def test_a_rule_that_can_not_be_read_is_an_error(rule: str) -> None:
    with pytest.raises(ConfigError, match="is no rule"):
        without(JOBS, [rule])


def test_an_empty_grid_is_an_error() -> None:
    with pytest.raises(ConfigError, match="leaves no cell"):
        without(JOBS, ["safety_tune=sft,dpo"])
