"""Installed plug-ins: packages with an entry point in the group `vlsafe.plugins`, and the configs that they ship.

A plug-in's configs lie in a folder `conf` beside the module that its entry point names (beside `__init__.py` where it names a
package), laid out as ours. They are found and checked without importing the plug-in, so that help comes at once.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from vlsafe.contracts import CONTRACTS
from vlsafe.errors import ConfigError, RegistryError
from vlsafe.settings import closest

ENTRY_POINTS = "vlsafe.plugins"
CONFIG_GROUPS = (*(group for group in CONTRACTS if group != "benchmark"), "experiment")


@dataclass(frozen=True)
class Plugin:
    point: EntryPoint
    package: str  # what pip calls it

    def __str__(self) -> str:
        return f"plug-in '{self.point.name}' of package {self.package}"

    @property
    def module(self) -> str:
        return self.point.value.partition(":")[0].partition("[")[0].strip()

    @functools.cached_property
    def conf(self) -> Path | None:
        """The folder of its configs, if it ships one."""
        try:
            spec = find_module(self.module)
        except (ImportError, ValueError, AttributeError):
            return None  # what is wrong with it is said when it is imported
        if spec is None:
            return None
        if spec.submodule_search_locations is not None:
            places = [Path(place) for place in spec.submodule_search_locations]
        else:
            # What lies beside a module that is in no package may be anybody's.
            places = [Path(spec.origin).parent] if spec.origin and "." in self.module else []
        return next((place / "conf" for place in places if (place / "conf").is_dir()), None)

    def configs(self) -> dict[str, Path]:
        """`merge/breadcrumbs` → its file."""
        files = sorted(self.conf.rglob("*.yaml")) if self.conf else []
        return {file.relative_to(self.conf).with_suffix("").as_posix(): file for file in files} if self.conf else {}


@functools.cache
def installed() -> tuple[Plugin, ...]:
    """In the order of their names, whatever the order of the path is."""
    found = [Plugin(point, point.dist.name if point.dist else point.value) for point in entry_points(group=ENTRY_POINTS)]
    return tuple(sorted(found, key=lambda plugin: (plugin.package, plugin.point.name)))


def owner(module: str) -> Plugin | None:
    """The plug-in that a module belongs to, by the package it lies in."""
    top = module.partition(".")[0]
    return next((plugin for plugin in installed() if plugin.module.partition(".")[0] == top), None)


def find_module(name: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, without importing the packages around it."""
    top, *inner = name.split(".")
    spec = importlib.util.find_spec(top)
    for i, _ in enumerate(inner, start=2):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(name.split(".")[:i]), list(spec.submodule_search_locations))
    return spec


def conf_folders() -> dict[Path, Plugin]:
    """Each folder of configs once, though one package may have several entry points."""
    folders: dict[Path, Plugin] = {}
    for plugin in installed():
        if plugin.conf is not None:
            folders.setdefault(plugin.conf, plugin)
    return folders


def check_configs(own: Path, search_path: Sequence[Path] = ()) -> None:
    """Raises `RegistryError`, which names the plug-in, for a config that hides another one, lies where none is looked for,
    can't be read or could run code, and `ConfigError` for one of the folders in a user's `search_path`. `own` is ours."""
    taken = {file.relative_to(own).with_suffix("").as_posix(): ("vlsafe", file) for file in own.rglob("*.yaml")}
    for plugin in conf_folders().values():
        for name, file in plugin.configs().items():
            said = f"{plugin}: conf/{name}.yaml"
            if name in taken:
                raise RegistryError(f"{said} is also a config of {taken[name][0]}: give it another name")
            taken[name] = f"package {plugin.package}", file
            group, _, rest = name.partition("/")
            if not rest:
                raise RegistryError(f"{said} is in no group: put it into conf/GROUP/, one of: {', '.join(CONFIG_GROUPS)}")
            if group not in CONFIG_GROUPS or "/" in rest:
                near = f"conf/{group} has no folders in it" if group in CONFIG_GROUPS else closest(group, CONFIG_GROUPS)
                raise RegistryError(f"{said}: there is no group '{name.rpartition('/')[0]}'; {near}")
            if complaint := complaint_about(file):
                raise RegistryError(f"{said} {complaint}")
    for folder in search_path:
        if not folder.is_dir():
            raise ConfigError(f"hydra.searchpath: there is no folder {folder}")
        for file in sorted(folder.glob("*/*.yaml")):
            said = f"hydra.searchpath: {file}"
            whose, first = taken.setdefault(file.relative_to(folder).with_suffix("").as_posix(), (str(folder), file))
            # Hydra reads the first of a name: ours, then a package's, then these in their order.
            if first != file and first.read_bytes() != file.read_bytes():
                raise ConfigError(f"{said} is also a config of {whose}, which is found first: give it another name")
            if complaint := complaint_about(file):
                raise ConfigError(f"{said} {complaint}")


def complaint_about(file: Path) -> str | None:
    """What is wrong with a config by itself, read as Hydra reads it."""
    from omegaconf import OmegaConf
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, ValueError, YAMLError) as error:
        return f"can't be read: {' '.join(str(error).split())}"
    if not isinstance(content, Mapping):
        return "is no mapping of settings: begin it with 'name: …'"
    if "_target_" in keys_of(content):
        return "holds '_target_': configs run no code; register a component and name it instead"
    return None


def keys_of(content: Any) -> Iterator[str]:
    """Every key of a config, at any depth, a dotted one in its parts."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from str(key).split(".")
            yield from keys_of(value)
    elif isinstance(content, list):
        for value in content:
            yield from keys_of(value)
