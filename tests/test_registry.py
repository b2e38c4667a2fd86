"""The registry: names are unique, known and suggested; ours are as their groups ask."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vlsafe import registry
from vlsafe.cells import GROUPS
from vlsafe.contracts import CONTRACTS, check_component
from vlsafe.errors import ConfigError, RegistryError
from vlsafe.registry import Component, register


def test_unknown_name_gets_the_nearest_match() -> None:
    with pytest.raises(ConfigError, match=r"merge\.name=tiess: no such merge; did you mean 'ties'\?"):
        registry.make("merge", {"name": "tiess"})


def test_missing_name_lists_the_options() -> None:
    with pytest.raises(ConfigError, match=r"has no 'name'; choose one with merge=NAME from: .*linear.*ties"):
        registry.make("merge", {"density": 0.5})


def test_a_taken_name_is_refused() -> None:
    registry.load()
    with pytest.raises(
        RegistryError, match=r"merge=ties is registered twice: by vlsafe\.merge\.methods\.ties\.Ties and by .*Other"
    ):

        @register("merge", "ties")
        @dataclass(frozen=True)
        class Other(Component):
            pass


def test_a_component_must_be_frozen() -> None:
    with pytest.raises(RegistryError, match="must be a frozen dataclass"):

        @register("merge", "loose")
        @dataclass
        class Loose(Component):
            pass


def test_our_own_components_are_as_their_groups_ask() -> None:
    for group in CONTRACTS:
        for name in registry.names(group):
            check_component(registry.get(group, name))


def test_every_group_of_a_cell_has_a_contract() -> None:
    assert {*GROUPS, "benchmark", "dataset"} == set(CONTRACTS)
