"""The registry: every component is a frozen dataclass of its settings, registered under (group, name).

    @register("merge", "ties")
    @dataclass(frozen=True)
    class Ties(MergeMethod): ...

A config names it (`name: ties`) and never a Python path. Third parties register through the entry-point group `vlsafe.plugins`.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from vlsafe.contracts import check_component, check_frozen, check_name
from vlsafe.errors import ConfigError, RegistryError, VlsafeError
from vlsafe.plugins import installed, owner
from vlsafe.settings import build, closest

# Modules that register our own components. They import heavy packages only inside functions.
OWN_MODULES = (
    "vlsafe.model.components",
    "vlsafe.model.embedded",
    "vlsafe.model.assembled",
    "vlsafe.model.from_lvlm",
    "vlsafe.data.components",
    "vlsafe.data.mixture",
    "vlsafe.data.sets",
    "vlsafe.train.adaptation",
    "vlsafe.train.single_stage",
    "vlsafe.train.tuning",
    "vlsafe.train.preference",
    "vlsafe.train.released",
    "vlsafe.merge.methods",
    "vlsafe.eval.benchmarks",
    "vlsafe.eval.engines",
    "vlsafe.eval.judges",
    "vlsafe.eval.llama_guard",
    "vlsafe.eval.suites",
    "vlsafe.tracking.components",
    "vlsafe.train.deepspeed",
    "vlsafe.surroundings",
)
HEAVY = ("torch", "transformers", "trl", "datasets", "wandb")


class Component:
    """Base of all components: `group` and `component_name` are set by `register`.

    Raise `version` when the same settings give another result: it is in the key, and what an earlier one made is left alone.
    """

    group: ClassVar[str]
    component_name: ClassVar[str]
    version: ClassVar[int] = 1

    def reads(self, field: str) -> Sequence[str] | None:
        """Patterns of the files that are read of the source in the setting `field`, and downloaded; None: all of them."""
        return None


C = TypeVar("C", bound=type[Component])
_components: dict[tuple[str, str], type[Component]] = {}


def register(group: str, name: str) -> Callable[[C], C]:
    """Class decorator; raises `RegistryError` for a name that is taken, an unknown group, or no frozen dataclass."""

    def add(cls: C) -> C:
        here = f"{cls.__module__}.{cls.__qualname__}"
        check_name(group, name, here)
        taken = _components.get((group, name))
        if taken is not None and f"{taken.__module__}.{taken.__qualname__}" != here:
            raise RegistryError(f"{group}={name} is registered twice: by {_whose(taken)} and by {here}; give it another name")
        check_frozen(cls, here)
        cls.group, cls.component_name = group, name
        _components[group, name] = cls
        return cls

    return add


def _whose(cls: type[Component]) -> str:
    plugin = owner(cls.__module__)
    return f"{cls.__module__}.{cls.__qualname__}" + (f" of package {plugin.package}" if plugin else "")


@functools.cache
def load() -> None:
    """Import every module that registers components, ours and then the installed plug-ins', and check the latter. Idempotent.

    Raises `RegistryError`, which names the plug-in and its package, for one that is broken.
    """
    for module in OWN_MODULES:
        importlib.import_module(module)
    for plugin in installed():
        light = not _loaded(HEAVY)
        try:
            plugin.point.load()
            for cls in [cls for cls in _components.values() if owner(cls.__module__) == plugin]:
                check_component(cls)
        except VlsafeError as error:
            raise RegistryError(f"{plugin}: {error}") from error
        except Exception as error:
            raise RegistryError(f"{plugin} can't be imported: {error!r}; mend or uninstall {plugin.package}") from error
        if light and _loaded(HEAVY):
            raise RegistryError(
                f"{plugin}: imports {_loaded(HEAVY)[0]} when it is loaded, which slows every command: import it in functions"
            )


def _loaded(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if module in sys.modules]


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
