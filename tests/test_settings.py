"""Settings: what is wrong is said exactly, and only what changes a result is in the spec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from vlsafe.errors import ConfigError
from vlsafe.settings import Fraction, PositiveInt, added, build, execution, settings_of, spec_of


@dataclass(frozen=True)
class Inner:
    steps: PositiveInt = 3


@dataclass(frozen=True)
class Outer:
    rate: float
    density: Fraction = 0.5
    weights: tuple[float, ...] | None = None
    mode: Literal["mean", "sum"] = "mean"
    inner: Inner = field(default_factory=Inner)
    batch_size: int = execution(8)
    rescale: bool = added(False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1, "densty": 0.2}, r"merge\.densty: unknown setting; did you mean 'density'\?"),
        ({"rate": 1, "density": 1.5}, r"merge\.density=1\.5: must be between 0 and 1"),
        ({"rate": 1, "density": True}, r"merge\.density=True: must be a number, not bool"),
        ({"rate": 1, "density": float("nan")}, r"must be finite"),
        ({"rate": "fast"}, r"merge\.rate='fast': must be a number, not str"),
        ({}, r"merge\.rate: must be set"),
        ({"rate": 1, "weights": [0.5, "b"]}, r"merge\.weights\[1\]='b': must be a number"),
        ({"rate": 1, "mode": "maen"}, r"merge\.mode=maen: did you mean 'mean'\?"),
        ({"rate": 1, "inner": {"steps": 0}}, r"merge\.inner\.steps=0: must be at least 1"),
        ({"rate": 1, "inner": {"stps": 1}}, r"merge\.inner\.stps: unknown setting; did you mean 'steps'\?"),
        ({"rate": 1, "inner": 3}, r"merge\.inner=3: must be a mapping"),
        ({"rate": 1, "batch_size": 2.5}, r"merge\.batch_size=2\.5: must be a whole number"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Outer, values, "merge")


def test_whole_numbers_pass_for_numbers_and_lists_for_tuples() -> None:
    built = build(Outer, {"rate": 1, "weights": [1, 2]}, "merge")
    assert built.rate == 1.0
    assert isinstance(built.rate, float)
    assert built.weights == (1.0, 2.0)


def test_execution_settings_stay_out_of_the_spec_and_in_the_worker_settings() -> None:
    built = build(Outer, {"rate": 1, "batch_size": 16}, "merge")
    assert "batch_size" not in spec_of(built)
    assert settings_of(built)["batch_size"] == 16


def test_an_added_setting_enters_the_spec_only_away_from_its_default() -> None:
    assert "rescale" not in spec_of(build(Outer, {"rate": 1}, "merge"))
    assert spec_of(build(Outer, {"rate": 1, "rescale": True}, "merge"))["rescale"] is True


def test_settings_come_back_from_json_unchanged() -> None:
    built = build(Outer, {"rate": 0.25, "weights": [1, 2], "inner": {"steps": 7}, "mode": "sum"}, "merge")
    assert build(Outer, settings_of(built), "merge") == built
