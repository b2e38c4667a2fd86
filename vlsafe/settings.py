"""Settings as frozen dataclasses: built from plain mappings with exact errors, and turned into specs that keys hash.

    @dataclass(frozen=True)
    class Ties(MergeMethod):
        density: Fraction = 0.5

`build(Ties, {"density": 1.5}, where="merge")` raises `merge.density=1.5: must be between 0 and 1`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from vlsafe.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """Both ends allowed."""

    low: float
    high: float

    def complaint(self, value: float) -> str | None:
        return None if self.low <= value <= self.high else f"must be between {self.low:.12g} and {self.high:.12g}"


@dataclass(frozen=True)
class AtLeast:
    low: float

    def complaint(self, value: float) -> str | None:
        return None if value >= self.low else f"must be at least {self.low:g}"


@dataclass(frozen=True)
class Above:
    low: float

    def complaint(self, value: float) -> str | None:
        return None if value > self.low else f"must be above {self.low:g}"


Fraction = Annotated[float, Between(0, 1)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
Seed = Annotated[int, Between(0, 2**32 - 1)]


def execution(default: Any) -> Any:
    """A setting that changes how a stage runs but not its result: kept out of the key, written to the manifest."""
    return dataclasses.field(default=default, metadata={"execution": True})


def added(default: Any, spec: Callable[[Any], Any] | None = None) -> Any:
    """A setting that came after the first release: while it has this default, which changes nothing, keys stay as they were.
    `spec` says what of another value is in the key."""
    return dataclasses.field(default=default, metadata={"neutral": default, "spec": spec or spec_of})


def closest(word: str, options: Sequence[str]) -> str:
    """The end of an error message: the nearest option, or all of them."""
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"choose from: {', '.join(sorted(options)) or 'nothing'}"


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of dataclass `cls`; raises `ConfigError` for unknown, missing, ill-typed or out-of-range fields."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    at = f"{where}." if where else ""
    hints = _hints(typing.cast(Any, cls))
    for name in values:
        if name not in fields:
            raise ConfigError(f"{at}{name}: unknown setting; {closest(str(name), list(fields))}")
    built: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            built[name] = convert(hints[name], values[name], f"{at}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{at}{name}: must be set")
    return cls(**built)


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint`, with no guessing: an int passes for a float, a list for a tuple, nothing else changes type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        converted = convert(args[0], value, where)
        for constraint in args[1:]:
            complaint = constraint.complaint(converted)
            if complaint:
                raise ConfigError(f"{where}={value}: {complaint}")
        return converted
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            raise ConfigError(f"{where}={value}: {closest(str(value), [str(a) for a in args])}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(k): convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return build(hint, value, where)
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"{where}={value}: must be finite")
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(f"{where}={value!r}: must be {describe(hint)}, not {type(value).__name__}")


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    complaints = []
    for option in options:
        if option is type(None):
            continue
        try:
            return convert(option, value, where)
        except ConfigError as error:
            complaints.append(error)
    if len(complaints) == 1:
        raise complaints[0]
    kinds = " or ".join(describe(o) for o in options)
    raise ConfigError(f"{where}={value!r}: must be {kinds}")


def describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(args[0])
    if origin is tuple:
        return f"a list of {describe(args[0])}"
    if origin is Literal:
        return " or ".join(map(str, args))
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, "a mapping of settings")


def spec_of(value: Any) -> Any:
    """The part of a settings object that its result depends on, as JSON values. Fields marked `execution`, and `added` fields
    at their neutral default, are left out; a component's registered name comes first, with its version where that is not 1.
    A class with a `spec` of its own says it itself."""
    own = getattr(value, "spec", None)
    if callable(own) and not isinstance(value, type):
        return own()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        spec: dict[str, Any] = {}
        name = getattr(type(value), "component_name", None)
        if name is not None:
            spec["name"] = name
            version = getattr(type(value), "version", 1)
            if version != 1:
                spec["version"] = version
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            neutral = field.metadata.get("neutral", dataclasses.MISSING)
            if not field.metadata.get("execution") and (neutral is dataclasses.MISSING or item != neutral):
                spec[field.name] = field.metadata.get("spec", spec_of)(item)
        return spec
    if isinstance(value, Mapping):
        return {k: spec_of(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [spec_of(v) for v in value]
    return value


def settings_of(value: Any) -> Any:
    """Every setting, those outside the key too, as JSON values: what a worker needs to build the component again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = getattr(type(value), "component_name", None)
        head = {} if name is None else {"name": name}
        return head | {f.name: settings_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: settings_of(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [settings_of(v) for v in value]
    return value
