"""Options of adaptation and safety_tune mean the microworld's trainings until `recipes` says otherwise: a real model is not
trained by them unasked. A learning rate of one's own is asking."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vlsafe.errors import ConfigError

TRAINED = ("adaptation", "safety_tune")


def check_recipes(configs: Collection[Any], given: Collection[str]) -> None:
    """Raises `ConfigError` where a real model would learn at the microworld's rates. `configs` are composed and need not be
    resolved; `given` are the settings that the command names: what it says itself stands, whatever the value."""
    microworlds = functools.cache(_microworlds)
    for config in configs:
        chosen = {str(name): str(option) for name, option in config.hydra.runtime.choices.items()}
        if "world" in config.model:
            continue
        for group in TRAINED:
            _check(group, chosen, _plain(config[group]), given, microworlds)


def _check(
    group: str,
    chosen: Mapping[str, str],
    settings: Mapping[str, Any],
    given: Collection[str],
    microworlds: Callable[[str, str], Mapping[str, Any]],
) -> None:
    option, family = chosen[group], chosen["recipes"]
    if option in _options(f"recipes/{family}/{group}"):
        return
    families = [name for name in _options("recipes") if option in _options(f"recipes/{name}/{group}")]
    # An option of one's own that builds on the microworld's is known by its component.
    for name in dict.fromkeys((option, str(settings.get("name")))):
        if name not in _options(f"recipes/real/{group}"):
            continue
        theirs = {path: found["learning_rate"] for path, found in trainings(microworlds(group, name), group)}
        kept = {
            path: found
            for path, found in trainings(settings, group)
            if found["learning_rate"] == theirs.get(path) and not {path, f"{path}.learning_rate"} & set(given)
        }
        if kept:
            said = ", ".join(f"{path}.learning_rate={f['learning_rate']:g} for {f['steps']} steps" for path, f in kept.items())
            how = "set recipes=real for published recipes" if families else f"choose {group}={name} and recipes=real"
            others = "".join(f" (or {family})" for family in families if family != "real")
            raise ConfigError(
                f"{group}={option}: model={chosen['model']} would be trained as the microworld's small model is ({said}): {how}"
                f"{others}, or set steps and each of these learning rates yourself"
            )


def trainings(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted path, settings) of each optimiser's run in a component's settings."""
    if {"steps", "learning_rate"} <= settings.keys():
        yield path, settings
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from trainings(value, f"{path}.{name}")


def _options(group: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    kind = ObjectType.GROUP if group == "recipes" else ObjectType.CONFIG
    return list(GlobalHydra.instance().config_loader().get_group_options(group, kind))


def _microworlds(group: str, option: str) -> Mapping[str, Any]:
    """The option's settings as they are without a preset."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    loader = GlobalHydra.instance().config_loader()
    return _plain(loader.load_configuration("config", [f"{group}={option}"], run_mode=RunMode.RUN)[group])


def _plain(config: Any) -> Mapping[str, Any]:
    from omegaconf import OmegaConf

    made = OmegaConf.to_container(config, resolve=False)
    assert isinstance(made, dict)
    return {str(name): value for name, value in made.items()}
