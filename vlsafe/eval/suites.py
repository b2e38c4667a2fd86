"""Suites, the config group `eval`: which benchmarks a cell's models are asked, and how many items of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from vlsafe.errors import ConfigError
from vlsafe.eval.base import Benchmark
from vlsafe.eval.engines import Engine
from vlsafe.microworld.world import World, check_world
from vlsafe.registry import Component, get, make, register
from vlsafe.settings import PositiveInt, closest

MOST = "max_new_tokens"  # of a benchmark's settings, the one that is the engine's


@dataclass(frozen=True)
class Suite(Component):
    """Base of the group `eval`. `limit` null asks every item."""

    benchmarks: tuple[str, ...]
    limit: PositiveInt | None = None

    def shared(self) -> Mapping[str, Any]:
        """Settings that the suite's benchmarks share: each gets those that it has."""
        return {}

    def check(self) -> None:
        """Raises `ConfigError` for benchmarks that can't be: called when cells are composed."""
        self.build()

    def check_model(self, model: Component) -> None:
        """Raises `ConfigError` where these benchmarks make no sense for this model: found when cells are composed."""

    def build(self) -> list[Benchmark]:
        """The benchmarks in their order. Raises `ConfigError` for an empty list, a name that comes twice or an unknown one."""
        if not self.benchmarks:
            raise ConfigError("eval.benchmarks=[]: must name at least one benchmark; eval.benchmarks=[mw_direct] asks one")
        twice = sorted({name for name in self.benchmarks if self.benchmarks.count(name) > 1})
        if twice:
            raise ConfigError(f"eval.benchmarks: '{twice[0]}' is named twice; name each benchmark once")
        return [self._make(name) for name in self.benchmarks]

    def engine_for(self, title: str, engine: Engine) -> Engine:
        """The engine as it asks one of the benchmarks."""
        return engine

    def _make(self, name: str) -> Benchmark:
        has = {field.name for field in dataclasses.fields(get("benchmark", name, "eval.benchmarks"))}  # type: ignore[arg-type]
        shared = {setting: value for setting, value in self.shared().items() if setting in has}
        return cast(Benchmark, make("benchmark", {"name": name, **shared}, "eval.benchmarks"))


@register("eval", "microworld")
@dataclass(frozen=True)
class MicroworldSuite(Suite):
    """The microworld's benchmarks, in the world that the model was made for."""

    world: World = dataclasses.field(default_factory=World)

    def shared(self) -> Mapping[str, Any]:
        return {"world": self.world}

    def check_model(self, model: Component) -> None:
        check_world("eval", self.world, model)


@register("eval", "benchmarks")
@dataclass(frozen=True)
class Benchmarks(Suite):
    """Public benchmarks and one's own. `settings` holds those of single benchmarks by name; under a name of one's own, with
    the benchmark that it is: `{ours: {name: jsonl, axis: text_safety, source: {folder: ours.jsonl}}}`. Any of them may have
    `max_new_tokens`, the most that its answers have; the engine's own are the most for all."""

    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def check_model(self, model: Component) -> None:
        if hasattr(model, "world"):
            raise ConfigError(
                f"eval={self.component_name} asks in English, which model={model.component_name} has no words for: set"
                " eval=microworld, or choose another model (+experiment=NAME)"
            )

    def check(self) -> None:
        for name in self.settings:
            if name not in self.benchmarks:
                raise ConfigError(f"eval.settings.{name}: eval.benchmarks has no such name; {closest(name, self.benchmarks)}")
            most = self.settings[name].get(MOST)
            if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
                raise ConfigError(f"eval.settings.{name}.{MOST}={most}: must be a whole number from 1 on, or null")
        super().check()

    def engine_for(self, title: str, engine: Engine) -> Engine:
        most = self.settings.get(title, {}).get(MOST)
        return engine if most is None else engine.within(most)

    def _make(self, name: str) -> Benchmark:
        where = f"eval.settings.{name}"
        given = dict(self.settings.get(name, {}))
        kind = given.pop("name", name)
        given.pop(MOST, None)
        has = {field.name for field in dataclasses.fields(get("benchmark", kind, "eval.benchmarks"))}  # type: ignore[arg-type]
        if kind != name:
            if "title" not in has:
                raise ConfigError(f"{where}.name={kind}: this benchmark can't have a name of your own: call it {kind}")
            given.setdefault("title", name)
        return cast(Benchmark, make("benchmark", {"name": kind, **given}, where))
