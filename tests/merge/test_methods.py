"""What a config may ask of a merge, and how a method is found."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsafe.errors import ConfigError
from vlsafe.merge import methods
from vlsafe.merge.base import MergeMethod
from vlsafe.merge.methods.dare_linear import DareLinear
from vlsafe.merge.methods.dare_ties import DareTies
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.methods.none import NoMerge
from vlsafe.merge.methods.slerp import Slerp
from vlsafe.merge.methods.task_arithmetic import TaskArithmetic
from vlsafe.merge.methods.ties import Ties
from vlsafe.settings import build, spec_of

CONF = Path(__file__).parents[2] / "conf" / "merge"
METHODS: dict[str, type[MergeMethod]] = {
    "none": NoMerge,
    "linear": Linear,
    "slerp": Slerp,
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "dare_linear": DareLinear,
    "dare_ties": DareTies,
}


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_stands_in_its_yaml_with_its_default(name: str) -> None:
    settings: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text().replace("${seed}", "0"))
    assert settings.pop("name") == name == METHODS[name].component_name
    assert set(settings) == {field.name for field in fields(METHODS[name])}
    method = build(METHODS[name], settings, "merge")
    method.check()
    assert method == METHODS[name]()


def output_of(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_method_is_found_because_its_file_is_there() -> None:
    listing = "import sys, vlsafe.merge.methods as m\n"
    listing += "print(sorted(name.split('.')[3] for name in sys.modules if name.startswith(m.__name__ + '.')))"
    assert output_of(listing) == str(sorted(p.stem for p in Path(methods.__path__[0]).glob("*.py") if p.stem != "__init__"))


def test_methods_are_described_without_torch() -> None:
    heavy = "('torch', 'numpy', 'transformers', 'safetensors')"
    assert output_of(f"import sys, vlsafe.merge.methods; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_merging_does_not_load_transformers() -> None:
    assert output_of("import sys, vlsafe.merge.stage, vlsafe.merge.report; print('transformers' in sys.modules)") == "False"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.5}, r"merge\.density=1\.5: must be between 0 and 1"),
        ({"densty": 0.5}, r"merge\.densty: unknown setting; did you mean 'density'\?"),
        ({"scale": 0}, r"merge\.scale=0: must be above 0"),
        ({"trim": "tensr"}, r"merge\.trim=tensr: did you mean 'tensor'\?"),
        ({"dtype": "int8"}, r"merge\.dtype=int8: choose from: .*bfloat16"),
        ({"models": "adapted"}, r"merge\.models='adapted': must be a list of text or pair"),
        ({"weights": [1, "x"]}, r"merge\.weights"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Ties, settings, "merge")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scope": "languge_model"}, r"merge\.scope=languge_model: did you mean 'language_model'\?"),
        ({"scope": []}, r"merge\.scope=\[\]: selects nothing"),
        ({"scope": ["layers.9-4"]}, r"merge\.scope=layers\.9-4: the range is empty; did you mean 'layers\.4-9'\?"),
        ({"models": ["tuned", "tuned"]}, r"merge\.models=\['tuned', 'tuned'\]: names a role twice"),
        ({"models": []}, r"takes at least 1 models, not 0"),
        ({"models": ["adapted", "tuned"], "weights": [1.0]}, r"merge\.weights=\[1\.0\]: 1 weights for 2 models"),
        ({"weights": [1.0, -0.5]}, r"none may be negative"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Ties, settings, "merge").check()


@pytest.mark.parametrize("method", [Linear, Slerp])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t": 1.2}, r"merge\.t=1\.2: must be between 0 and 1"),
        ({"t": -0.1}, r"merge\.t=-0\.1: must be between 0 and 1"),
        ({"t": 0.3, "weights": [0.7, 0.3]}, r"merge\.t=0\.3: merge\.weights=\[0\.7, 0\.3\] are set too; set one of the two"),
    ],
)
def test_t_lies_between_two_models_and_stands_for_weights(
    method: type[MergeMethod], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(method, settings, "merge").check()


def test_t_is_of_two_models() -> None:
    with pytest.raises(ConfigError, match=r"merge\.t=0\.3: lies between two models, not 3; set merge\.weights instead"):
        build(Linear, {"t": 0.3, "models": ["base", "adapted", "tuned"]}, "merge").check()


def test_t_is_known_by_its_weights() -> None:
    assert Linear(t=0.5).resolved(2) == Linear().resolved(2) == Linear(weights=(0.5, 0.5))
    for tenths in range(11):
        t, rest = tenths / 10, (10 - tenths) / 10
        assert Slerp(t=t).resolved(2) == Slerp(weights=(rest, t))
    Slerp(t=0.0).resolved(2).check()
    assert Linear().resolved(4).weights == Ties().resolved(4).weights == (0.25,) * 4
    assert Ties(weights=(3.0,)).resolved(1).weights == (3.0,)
    assert "t" not in spec_of(Linear())


def test_linear_takes_two_models_at_least() -> None:
    with pytest.raises(ConfigError, match="merge=linear takes at least 2 models, not 1"):
        build(Linear, {"models": ["tuned"]}, "merge").check()
    build(Linear, {"models": ["base", "adapted", "tuned"], "weights": [1, 2, 3]}, "merge").check()


def test_the_size_of_files_is_no_part_of_a_merge() -> None:
    assert spec_of(Linear(max_shard_gb=1.0)) == spec_of(Linear())
    assert spec_of(Linear(dtype="bfloat16")) != spec_of(Linear())


def test_no_merge_merges_nothing() -> None:
    assert not NoMerge.merges
    NoMerge(weights=(1.0, 2.0)).check()
    with pytest.raises(ConfigError, match="merge=none merges nothing"):
        NoMerge().merge([], None, [], "x")
