"""Breadcrumbs: the formula on numbers that can be read, and the method that it is at its ends."""

import pytest
import torch
from vlsafe_example.breadcrumbs import Breadcrumbs

from vlsafe.errors import ConfigError
from vlsafe.merge.methods.task_arithmetic import TaskArithmetic


def test_the_largest_and_the_smallest_changes_are_dropped() -> None:
    base, model = torch.zeros(10), torch.tensor([9.0, -8, 7, -6, 5, -4, 3, -2, 1, 0.5])
    merged = Breadcrumbs(density=0.5, gamma=0.2, scale=2.0).merge([model], base, [0.5], "x")
    assert merged.tolist() == [0, 0, 7, -6, 5, -4, 3, 0, 0, 0]


def test_whole_it_is_task_arithmetic() -> None:
    base, *models = (torch.randn(3, 50, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole = Breadcrumbs(density=1.0, gamma=0.0, scale=0.7).merge(models, base, [0.3, 0.9], "x")
    torch.testing.assert_close(whole, TaskArithmetic(scale=0.7).merge(models, base, [0.3, 0.9], "x"))


def test_more_than_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"merge\.density=0\.9: with merge\.gamma=0\.2 it is more than all"):
        Breadcrumbs(density=0.9, gamma=0.2).check()
