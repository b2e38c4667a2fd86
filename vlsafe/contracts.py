"""What a component of each group has to be: the class it extends, and what it must define itself. Checked before anything runs.

Our own components are held to it by a test, those of plug-ins whenever they are loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

from vlsafe.errors import ConfigError, RegistryError
from vlsafe.settings import closest, convert, describe


class Contract(NamedTuple):
    base: str  # module and name of the group's base class
    defines: tuple[str, ...] = ()  # what the base leaves to each component


CONTRACTS: Mapping[str, Contract] = {
    "model": Contract("vlsafe.model.components.ModelSource", ("build",)),
    "data": Contract("vlsafe.data.rows.TrainingData"),
    "dataset": Contract("vlsafe.data.sets.base.Dataset", ("rows", "serves")),
    "adaptation": Contract("vlsafe.train.adaptation.Adaptation"),
    "safety_tune": Contract("vlsafe.train.tuning.SafetyTune", ("order",)),
    "merge": Contract("vlsafe.merge.base.MergeMethod", ("merge",)),
    "benchmark": Contract("vlsafe.eval.base.Benchmark", ("items", "axis", "needs_image")),
    "eval": Contract("vlsafe.eval.suites.Suite"),
    "judge": Contract("vlsafe.eval.base.Judge", ("label",)),
    "engine": Contract("vlsafe.eval.engines.Engine", ("answer",)),
    "tracking": Contract("vlsafe.tracking.base.Tracking", ("destination",)),
    "deepspeed": Contract("vlsafe.registry.Component"),
    "analysis": Contract("vlsafe.registry.Component"),
}
_PLAIN = (float, int, bool, str, type(None), Any)


def check_name(group: str, name: str, here: str) -> None:
    """Raises `RegistryError` for a group that there isn't, or a name that can't be a file's."""
    if group not in CONTRACTS:
        raise RegistryError(f"{here}: there is no group '{group}'; {closest(str(group), list(CONTRACTS))}")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise RegistryError(f"{here}: {group}={name!r} can't be a name; use letters, digits, _ and -")


def check_frozen(cls: Any, here: str) -> None:
    parameters = getattr(cls, "__dict__", {}).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise RegistryError(f"{here}: a component must be a frozen dataclass (put @register above @dataclass(frozen=True))")


def check_component(cls: Any) -> None:
    """Raises `RegistryError` where a registered class is not what its group asks for, or has settings no config can give."""
    here, group = f"{cls.group}={cls.component_name} ({cls.__module__}.{cls.__qualname__})", cls.group
    contract = CONTRACTS[group]
    module, _, name = contract.base.rpartition(".")
    base = getattr(importlib.import_module(module), name)
    if not issubclass(cls, base):
        raise RegistryError(f"{here}: must extend {contract.base}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for needed in contract.defines:
        if needed not in fields and getattr(cls, needed, None) is getattr(base, needed, None):
            raise RegistryError(f"{here}: has no '{needed}' of its own; define what {contract.base} asks for")
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise RegistryError(
            f"{here}: its settings' types can't be read ({error}): import what they name, and not only for TYPE_CHECKING"
        ) from error
    for field in fields.values():
        check_setting(field, hints[field.name], here)
    for constant, hint in typing.get_type_hints(base, include_extras=True).items():
        if get_origin(hint) is ClassVar and constant not in fields and getattr(cls, constant, None) is not None:
            try:
                convert(get_args(hint)[0], getattr(cls, constant), constant)
            except ConfigError as error:
                raise RegistryError(f"{here}: {error}") from None


def check_setting(field: dataclasses.Field[Any], hint: Any, here: str) -> None:
    if field.name in ("name", "version"):
        raise RegistryError(f"{here}: a setting can't be called '{field.name}', which is the component's own; rename it")
    bad = unbuildable(hint)
    if bad is not None:
        raise RegistryError(
            f"{here}: no config can give '{field.name}' its type, {bad}; use numbers, text, booleans, Literal, tuple[X, ...],"
            " dict[str, X] or a frozen dataclass of these"
        )
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is not dataclasses.MISSING:
        try:
            convert(hint, default, field.name)
        except ConfigError as error:
            raise RegistryError(f"{here}: the default {error}") from None


def unbuildable(hint: Any) -> str | None:
    """The part of a type that `settings.build` can't make from a config's values; None where it can make all of it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _PLAIN or origin is Literal:
        return None
    if origin is Annotated:
        limits = all(hasattr(limit, "complaint") for limit in args[1:])
        return unbuildable(args[0]) if limits else f"{describe(args[0])} with a limit that has no complaint()"
    if origin in (Union, types.UnionType):
        return next((bad for arg in args if (bad := unbuildable(arg))), None)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return unbuildable(args[0])
    if origin in (dict, Mapping) and args[0] is str:
        return unbuildable(args[1])
    if dataclasses.is_dataclass(hint):
        inner = typing.get_type_hints(hint, include_extras=True)
        return next((bad for f in dataclasses.fields(hint) if (bad := unbuildable(inner[f.name]))), None)
    return str(hint) if origin is not None else getattr(hint, "__name__", str(hint))
