"""The registry: names are unique, known and suggested; broken plug-ins are named with their package."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import pytest

from vlsafe import registry
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


@pytest.mark.parametrize(
    ("module", "reason"), [("vlsafe_no_such_module", "can't be imported"), ("json:no_such_thing", "can't be imported")]
)
def test_a_broken_plug_in_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, module: str, reason: str) -> None:
    point = importlib.metadata.EntryPoint("broken", module, "vlsafe.plugins")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry.load.cache_clear()
    try:
        with pytest.raises(RegistryError, match=rf"plug-in 'broken' of package .*{reason}"):
            registry.load()
    finally:
        monkeypatch.undo()
        registry.load.cache_clear()
        registry.load()
