"""The registry: every component is a frozen dataclass of its settings, registered under (group, name).

    @register("merge", "ties")
    @dataclass(frozen=True)
    class Ties(MergeMethod): ...

A config names it (`name: ties`) and never a Python path. Third parties register through the entry-point group `vlsafe.plugins`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from vlsafe.errors import ConfigError, RegistryError, VlsafeError
from vlsafe.settings import build, closest

# Modules that register our own components. They import heavy packages only inside functions.
OWN_MODULES = (
    "vlsafe.model.components",
    "vlsafe.data.components",
    "vlsafe.train.adaptation",
    "vlsafe.train.tuning",
    "vlsafe.merge.methods",
    "vlsafe.eval.benchmarks",
    "vlsafe.eval.engines",
    "vlsafe.eval.judges",
    "vlsafe.eval.suites",
    "vlsafe.tracking.components",
    "vlsafe.surroundings",
)


class Component:
    """Base of all components: `group` and `component_name` are set by `register`."""

    group: ClassVar[str]
    component_name: ClassVar[str]


C = TypeVar("C", bound=type[Component])
_components: dict[tuple[str, str], type[Component]] = {}


def register(group: str, name: str) -> Callable[[C], C]:
    """Class decorator; raises `RegistryError` for a name that is taken or a class that is no frozen dataclass."""

    def add(cls: C) -> C:
        taken = _components.get((group, name))
        here = f"{cls.__module__}.{cls.__qualname__}"
        if taken is not None and f"{taken.__module__}.{taken.__qualname__}" != here:
            raise RegistryError(f"{group}={name} is registered twice: by {taken.__module__}.{taken.__qualname__} and by {here}")
        parameters = cls.__dict__.get("__dataclass_params__")
        if parameters is None or not parameters.frozen:
            raise RegistryError(f"{here}: a component must be a frozen dataclass (put @register above @dataclass(frozen=True))")
        cls.group, cls.component_name = group, name
        _components[group, name] = cls
        return cls

    return add


@functools.cache
def load() -> None:
    """Import every module that registers components: ours, then the installed plug-ins. Idempotent."""
    for module in OWN_MODULES:
        importlib.import_module(module)
    for point in entry_points(group="vlsafe.plugins"):
        package = point.dist.name if point.dist else point.value
        try:
            point.load()
        except VlsafeError as error:
            raise RegistryError(f"plug-in '{point.name}' of package {package}: {error}") from error
        except Exception as error:
            raise RegistryError(f"plug-in '{point.name}' of package {package} can't be imported: {error!r}") from error


def names(group: str) -> list[str]:
    load()
    return sorted(n for g, n in _components if g == group)


def get(group: str, name: Any, where: str | None = None) -> type[Component]:
    """The class registered as `name`; an unknown name raises `ConfigError` with the nearest match."""
    options = names(group)
    if not isinstance(name, str) or name not in options:
        raise ConfigError(f"{where or group}.name={name}: no such {group}; {closest(str(name), options)}")
    return _components[group, name]


def make(group: str, settings: Mapping[str, Any], where: str | None = None) -> Any:
    """The component that a mapping `{name: ..., setting: ...}` describes, checked field by field."""
    where = where or group
    if "name" not in settings:
        raise ConfigError(f"{where}: has no 'name'; choose one with {group}=NAME from: {', '.join(names(group))}")
    cls = get(group, settings["name"], where)
    return build(cls, {k: v for k, v in settings.items() if k != "name"}, where)
