"""A suite is a list of benchmarks by name; a wrong one fails before anything runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlsafe import registry
from vlsafe.errors import ConfigError
from vlsafe.eval.suites import MicroworldSuite
from vlsafe.microworld.world import World
from vlsafe.plan import make_plan
from vlsafe.settings import spec_of

CONF = Path(__file__).parents[2] / "conf"


def shipped(group: str, name: str) -> Any:
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


def test_the_shipped_suite_covers_every_axis_in_the_models_world() -> None:
    settings = shipped("eval", "microworld") | {"world": {"seed": 5}}
    suite = registry.make("eval", settings)
    benchmarks = suite.build()
    assert [b.component_name for b in benchmarks] == settings["benchmarks"]
    assert {b.axis for b in benchmarks} == {"text_safety", "multimodal_safety", "over_refusal", "helpfulness"}
    assert {b.world for b in benchmarks} == {World(seed=5)}


@pytest.mark.parametrize(("group", "name"), [("judge", "exact"), ("judge", "keyword"), ("engine", "hf")])
def test_shipped_settings_build(group: str, name: str) -> None:
    assert registry.make(group, shipped(group, name)).component_name == name


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("mw_direkt",), "did you mean 'mw_direct'"),
        (("mw_direct", "mw_wrapped", "mw_direct"), "'mw_direct' is named twice"),
        ((), "must name at least one"),
    ],
)
def test_a_wrong_list_of_benchmarks_is_told(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        MicroworldSuite(benchmarks=names).build()


def test_a_limit_below_one_is_told() -> None:
    with pytest.raises(ConfigError, match=r"eval\.limit=0: must be at least 1"):
        registry.make("eval", shipped("eval", "microworld") | {"limit": 0, "world": {}})


def test_batch_size_is_not_in_the_key_and_the_rest_is() -> None:
    engine = registry.make("engine", shipped("engine", "hf"))
    assert spec_of(dataclasses.replace(engine, batch_size=1)) == spec_of(engine)
    assert set(spec_of(engine)) == {"name", "max_new_tokens", "text_image", "system_prompt"}


def test_components_are_known_without_heavy_imports() -> None:
    modules = "vlsafe.eval.benchmarks, vlsafe.eval.engines, vlsafe.eval.judges, vlsafe.eval.suites"
    heavy = "{'torch', 'transformers', 'trl', 'numpy', 'PIL', 'pandas'}"
    script = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def first(**changes: Any) -> Any:
    return registry.make("eval", shipped("eval", "first") | changes)


def test_the_first_real_suite_covers_every_axis_and_pins_what_the_hub_has() -> None:
    benchmarks = first().build()
    assert {b.axis for b in benchmarks} == {"text_safety", "multimodal_safety", "over_refusal", "helpfulness"}
    sources = {b.component_name: spec_of(b)["source"] for b in benchmarks}
    assert sources.pop("figstep") == {"id": "ThuCCSLab/FigStep", "revision": "unresolved"}
    assert all(len(source["revision"]) == 40 for source in sources.values())
    assert all(b.licence and b.page for b in benchmarks)


def test_a_benchmark_of_ones_own_stands_in_the_results_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    ours = {"name": "jsonl", "axis": "text_safety", "source": {"folder": str(tmp_path / "a.jsonl")}}
    suite = first(benchmarks=["xstest", "ours"], settings={"ours": ours})
    assert [b.title for b in suite.build()] == ["xstest", "ours"]
    before = spec_of(suite.build()[1])
    (tmp_path / "a.jsonl").write_text('{"prompt": "y"}\n')
    assert spec_of(suite.build()[1]) != before  # what is in the file is in the key, and its path is not
    assert str(tmp_path) not in str(before)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"benchmarks": ["xtest"]}, "did you mean 'xstest'"),
        ({"settings": {"xtest": {}}}, "eval.benchmarks has no such name"),
        ({"settings": {"mme": {"sorce": {"folder": "x"}}}}, r"eval\.settings\.mme\.sorce"),
        ({"benchmarks": ["ours"], "settings": {"ours": {"name": "mme"}}}, "can't have a name of your own"),
        ({"benchmarks": ["jsonl"]}, "jsonl"),
    ],
)
def test_wrong_settings_of_a_benchmark_are_told_when_cells_are_composed(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        first(**changes).check()


def engines(grid: Any, *overrides: str) -> dict[str, tuple[str, int]]:
    """(key, most new tokens) of what the adapted model is asked, by benchmark."""
    plan = make_plan(grid("+experiment=llava15_released", "merge=none", *overrides))
    evaluated = {e.benchmark: plan.stages[e.stage] for e in plan.cells[0].evaluations if e.role == "adapted"}
    asked = {name: plan.stages[judged.parents["responses"]] for name, judged in evaluated.items()}
    return {name: (stage.key, stage.settings["engine"]["max_new_tokens"]) for name, stage in asked.items()}


def test_a_benchmark_may_be_asked_for_shorter_answers(grid: Any) -> None:
    plain = engines(grid)
    assert {most for _, most in plain.values()} == {256}
    short = engines(grid, "+eval.settings.mme.max_new_tokens=16")
    assert short["mme"][1] == 16
    assert {name: said for name, said in short.items() if name != "mme"} == {n: s for n, s in plain.items() if n != "mme"}
    assert short["mme"] == engines(grid, "engine.max_new_tokens=16")["mme"]  # the same question under the same key
    assert engines(grid, "+eval.settings.mme.max_new_tokens=512") == plain  # the engine's own are the most
    assert engines(grid, "+eval.settings.mme.max_new_tokens=null") == plain


@pytest.mark.parametrize("most", [0, -1, 2.5, True, "many"])
def test_a_number_of_tokens_that_can_not_be_is_told(most: Any) -> None:
    with pytest.raises(ConfigError, match=rf"eval\.settings\.mme\.max_new_tokens={most}: must be a whole number"):
        first(settings={"mme": {"max_new_tokens": most}}).check()


def test_the_microworlds_models_are_sent_back_to_their_own_suite(grid: Any) -> None:
    with pytest.raises(ConfigError, match=r"eval=benchmarks asks in English.*set eval=microworld"):
        grid("eval=first")
