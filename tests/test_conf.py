"""Every shipped YAML composes and plans, alone and in a preset, and says for each of its numbers where it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vlsafe import registry
from vlsafe.cells import GROUPS
from vlsafe.data.mixture import PURPOSES
from vlsafe.plan import make_plan

Grid = Callable[..., Any]
OPTIONS = [(p.parent.name, p.stem) for p in sorted((ROOT / "conf").glob("*/*.yaml")) if p.parent.name in GROUPS]
MICROWORLD = ("microworld", "microworld_small", "microworld_wide", "replay")
REAL = [
    o for o in OPTIONS if o[0] in ("model", "data", "eval") and o[1] not in MICROWORLD
]  # with the microworld's they say nothing
PRESETS = [p.stem for p in sorted((ROOT / "conf" / "experiment").glob("*.yaml"))]
RECIPES = [
    p for group in ("model", "adaptation", "safety_tune", "merge") for p in sorted((ROOT / "conf" / group).glob("*.yaml"))
]


def test_every_group_has_an_option() -> None:
    assert {group for group, _ in OPTIONS} == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o not in REAL])
def test_every_option_composes_and_plans(grid: Grid, group: str, option: str) -> None:
    plan = make_plan(grid(f"{group}={option}"))
    assert plan.cells[0].cell.choices[group] == option
    assert plan.cells[0].evaluations


@pytest.mark.parametrize(("group", "option"), REAL)
def test_every_option_for_real_models_composes_and_plans(
    grid: Grid, group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for purpose in PURPOSES:  # where data=jsonl looks for a user's own rows
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{purpose}.jsonl").write_text("{}\n")
    chosen = {
        "model": "llama2_7b",
        "data": "llava_vlguard",
        "eval": "first",
        "judge": "keyword",
        "recipes": "real",
        group: option,
        "engine.pad_to_square": str(option.endswith("_padded")).lower(),  # as the rows' pictures, or it is refused
    }
    plan = make_plan(grid(*(f"{name}={value}" for name, value in chosen.items())))
    assert plan.cells[0].cell.choices[group] == option
    assert plan.cells[0].evaluations


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_composes_and_plans(grid: Grid, preset: str) -> None:
    assert make_plan(grid(f"+experiment={preset}")).cells


def test_the_demo_is_a_grid_of_at_least_twelve_cells_with_four_merges(grid: Grid) -> None:
    plan = make_plan(grid("+experiment=demo"))
    assert len(plan.cells) >= 12
    assert len({c.cell.choices["merge"] for c in plan.cells} - {"none"}) == 4
    assert sum(s.kind == "adaptation" and s.step is None for s in plan.stages.values()) == 1


def test_every_component_of_the_grid_has_a_yaml() -> None:
    for group in GROUPS:
        # An option that builds on another of its group (sft_lora on sft) takes the name over.
        files = [p.read_text() for p in (ROOT / "conf" / group).glob("*.yaml")]
        names = {found[1] for text in files if (found := re.search(r"^name: (\S+)", text, re.MULTILINE))}
        assert all(re.search(r"^name: |^defaults: \[\w+, _self_\]", text, re.MULTILINE) for text in files), group
        assert names == set(registry.names(group)), group


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_number_of_a_recipe_says_where_it_comes_from(path: Any) -> None:
    for line in path.read_text().splitlines():
        setting = re.match(r"\s*(\w+):\s*([^\s#].*)?$", line)
        if (
            setting
            and setting[1] not in ("name", "order", "defaults")
            and path.stem != "none"
            and re.match(r"\s*\w+:\s*[^#\s]", line)
        ):
            assert re.search(r"#\s*(ours|paper|source)", line), f"{path.name}: {line}"


def test_no_config_can_run_code() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path
