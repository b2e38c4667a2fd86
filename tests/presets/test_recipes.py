"""Published recipes: their steps follow from what they count, and real models never get the microworld's numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vlsafe.errors import ConfigError
from vlsafe.plan import make_plan
from vlsafe.presets.origins import Setting, compose
from vlsafe.presets.page import families
from vlsafe.train.split import optimizations

CONF = ROOT / "conf"
Grid = Callable[..., Any]
GROUPS = ("adaptation", "safety_tune")
MICROWORLD = {"adaptation": ("llava", "llava_lora", "single_stage", "filtered"),
              "safety_tune": ("sft", "sft_lora", "sft_mixed", "dpo", "dpo_lora", "kto", "kto_lora")}  # fmt: skip
OWN_NAMES = [("adaptation", "llava15"), ("adaptation", "llava15_lora"), ("safety_tune", "vlguard_posthoc"),
             ("safety_tune", "vlguard_mixed"), ("safety_tune", "spa_vl_dpo"), ("safety_tune", "spa_vl_dpo_lora"),
             ("safety_tune", "safe_rlhf_dpo")]  # fmt: skip
REAL = [(family, group, option) for family in families(CONF) for group in GROUPS for option in MICROWORLD[group]]


def phases(family: str, group: str, option: str) -> Iterator[dict[str, Setting]]:
    """Each optimiser's settings of an option, by their last name."""
    found = {s.path: s for s in compose(CONF, [f"recipes={family}", f"{group}={option}"]).of(group)}
    for path in found:
        if path.endswith(".steps"):
            above = path.removesuffix("steps")
            yield {name.removeprefix(above): s for name, s in found.items() if name.startswith(above)}


@pytest.mark.parametrize(("family", "group", "option"), [("real", g, o) for g in GROUPS for o in MICROWORLD[g]]
                         + [("microworld", g, o) for g, o in OWN_NAMES])  # fmt: skip
def test_steps_are_one_epoch_and_warm_up_a_share_of_them(family: str, group: str, option: str) -> None:
    counted = 0
    for phase in phases(family, group, option):
        steps, batch = phase["steps"].value, phase["batch_size"].value
        if rows := re.search(r"one epoch of ([\d,]+)", phase["steps"].said):
            pairs = 2 if option.startswith("kto") else 1  # both sides of a pair are answers of their own
            assert steps == math.ceil(int(rows[1].replace(",", "")) * pairs / batch)
            counted += 1
        if share := re.search(r"([\d.]+) of the steps", phase["warmup_steps"].said):
            assert phase["warmup_steps"].value == math.ceil(float(share[1]) * steps)
            counted += 1
    assert counted or option == "safe_rlhf_dpo"


@pytest.mark.parametrize(("family", "group", "option"), REAL)
def test_on_real_models_nothing_of_the_microworld_is_left(family: str, group: str, option: str) -> None:
    for phase in phases(family, group, option):
        small = {s.path for name, s in phase.items() if s.file.startswith(f"{group}/") and s.file == f"{group}/{option}"}
        assert not small
        assert phase["max_length"].value is not None
        assert phase["precision"].value == ("bf16" if family == "real" else "fp32")


@pytest.mark.parametrize(("family", "group", "option"), REAL)
def test_every_option_plans_on_a_real_model(grid: Grid, family: str, group: str, option: str) -> None:
    preset = {"real": "paper_llama2", "laptop": "smollm2_laptop"}[family]
    order = [] if group == "safety_tune" and option == "sft_mixed" else ["safety_tune.order=after"]
    plan = make_plan(grid(f"+experiment={preset}", f"{group}={option}", *order))
    assert plan.cells[0].final == "tuned"


def test_every_option_that_trains_has_a_meaning_on_real_models() -> None:
    """A new option of the microworld's needs a recipe for real models, or its toy steps would run on 7B."""
    for group in GROUPS:
        for file in (CONF / group).glob("*.yaml"):
            own = (
                not re.search(r"source: (LLaVA-1.5|VLGuard|SPA-VL|Tulu-2)", file.read_text("utf-8"))
                or file.stem in MICROWORLD[group]
            )
            if own and file.stem not in ("none", "checkpoint") and not file.stem.endswith("_released"):
                for family in families(CONF):
                    assert (CONF / "recipes" / family / group / file.name).is_file(), f"{family}: {group}={file.stem}"


def test_the_command_of_the_readme_means_published_recipes(grid: Grid) -> None:
    cells = grid("+experiment=paper_llama2", "safety_tune=sft,dpo", "merge=linear,ties")
    assert len(cells) == 4
    by_tuning = {cell.choices["safety_tune"]: cell.components["safety_tune"] for cell in cells}
    sft, dpo = by_tuning["sft"].optimization, by_tuning["dpo"].optimization
    assert (sft.steps, sft.batch_size, sft.learning_rate) == (55, 128, 2e-5)
    assert (dpo.steps, dpo.batch_size, dpo.learning_rate) == (11658, 8, 1e-6)
    for cell in cells:
        assert [o.steps for _, o in optimizations(cell.components["adaptation"], "")] == [2181, 5198]
        assert cell.choices["adaptation"] == "llava"


def test_a_setting_of_the_command_line_counts_more_than_the_recipe(grid: Grid) -> None:
    (cell,) = grid("+experiment=paper_llama2", "safety_tune=dpo", "safety_tune.beta=0.3", "adaptation.instruct.steps=7")
    assert cell.components["safety_tune"].beta == 0.3
    assert cell.components["safety_tune"].optimization.steps == 11658
    assert cell.components["adaptation"].instruct.steps == 7


def test_without_a_preset_the_options_are_the_microworlds(grid: Grid) -> None:
    (cell,) = grid("safety_tune=dpo")
    assert cell.components["safety_tune"].optimization.steps == 60


def test_tulu_has_both_orders_and_the_joint_arm(grid: Grid) -> None:
    arms = {(c.choices["safety_tune"], c.order) for c in grid("+experiment=paper_tulu2")}
    assert arms == {("none", "after"), ("dpo", "after"), ("dpo", "before"), ("sft", "after"), ("sft", "joint")}


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("llama2_7b", "paper_llama2"),
        ("smollm2_135m", "paper_llama2"),
        ("llava15_7b", "llava15_released"),
        ("qwen25_vl_3b", "qwen25_vl_released"),
    ],
)
def test_a_real_model_with_the_microworlds_rows_is_refused(grid: Grid, model: str, preset: str) -> None:
    with pytest.raises(ConfigError, match=rf"data=microworld: .* model={model}; .* \+experiment={preset} model={model}"):
        grid(f"model={model}")


def test_a_real_model_with_the_microworlds_benchmarks_is_refused(grid: Grid) -> None:
    with pytest.raises(ConfigError, match=r"eval=microworld: .* model=llama2_7b; .* \+experiment=paper_llama2"):
        grid("model=llama2_7b", "data=llava_vlguard")


BY_HAND = ("model=llama2_7b", "data=llava_vlguard", "eval=first", "judge=keyword")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (),
            r"adaptation=llava: model=llama2_7b .*projector.learning_rate=0.006 for 350 steps, .*recipes=real .*laptop",
        ),
        (("recipes=microworld",), r"adaptation=llava: .* recipes=real"),
        (("adaptation.instruct.learning_rate=2e-5",), r"\(adaptation.projector.learning_rate=0.006 for 350 steps\)"),
        (("adaptation.instruct.steps=5000", "adaptation.projector.steps=2000"), r"adaptation.instruct.learning_rate=0.0008"),
        (("adaptation=llava15", "safety_tune=dpo"), r"safety_tune=dpo: .*optimization.learning_rate=5e-05 for 60 steps"),
        (("adaptation=llava15", "safety_tune=vlguard_mixed,kto", "safety_tune.order=after"), r"safety_tune=kto"),
        (("adaptation=tiny_own", "recipes=real"), r"adaptation=tiny_own: .* choose adaptation=llava and recipes=real"),
    ],
)
def test_a_real_model_is_not_trained_as_the_microworld_is(grid: Grid, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(*BY_HAND, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("recipes=real",),
        ("adaptation=llava15", "safety_tune=vlguard_posthoc"),
        ("adaptation=llava15", "safety_tune=sft", "safety_tune.optimization.learning_rate=2e-5"),
        ("adaptation=llava15", "safety_tune=sft", "safety_tune.optimization.learning_rate=3e-4"),  # the microworld's, asked for
        ("adaptation=llava15", "safety_tune=sft", "safety_tune.optimization.learning_rate=1e-5,2e-5"),
        ("adaptation=none", "safety_tune=none"),
        ("model=llava15_7b", "adaptation=checkpoint", "safety_tune=checkpoint"),
    ],
)
def test_ones_own_learning_rates_and_published_recipes_are_let_through(grid: Grid, overrides: tuple[str, ...]) -> None:
    assert make_plan(grid(*BY_HAND, *overrides)).cells


@pytest.mark.parametrize("override", ["data=llava_vlguard", "eval=first"])
def test_the_microworld_with_real_rows_or_benchmarks_is_refused(grid: Grid, override: str) -> None:
    with pytest.raises(ConfigError, match=r"microworld.*\+experiment="):
        grid(override)


@pytest.mark.parametrize(("preset", "padded"), [("llava15_released", True), ("paper_llama2", False), ("paper_tulu2", False),
                                                ("qwen25_vl_released", False), ("smollm2_laptop", False)])  # fmt: skip
def test_pictures_are_asked_as_they_are_trained_on(grid: Grid, preset: str, padded: bool) -> None:
    """LLaVA-1.5, VLGuard's tuning and SPA-VL pad to a square, and so must who goes on from there."""
    for tuning in ("sft", "dpo"):
        for cell in grid(f"+experiment={preset}", f"safety_tune={tuning}", "safety_tune.order=after"):
            assert cell.components["engine"].pad_to_square is padded
            data = cell.components["data"]
            shown = {**data.instruct, **data.safety, **data.preference}  # without text-only sets and LLaVA's first stage
            for name in {"llava_instruct", "vlguard", "spa_vl"} & shown.keys():
                assert shown[name].pad_to_square is padded, name
            assert not any(share.pad_to_square for share in data.projector.values())


@pytest.mark.parametrize(("preset", "data", "padded"), [("llava15_released", "llava_vlguard", True),
                                                        ("paper_llama2", "llava_vlguard_padded", False)])  # fmt: skip
def test_pictures_that_would_be_asked_in_another_shape_than_they_were_learned_in_are_refused(
    grid: Grid, preset: str, data: str, padded: bool
) -> None:
    given = [f"+experiment={preset}", "safety_tune=sft", f"data={data}"]
    wrong = (
        f"engine.pad_to_square={str(padded).lower()} and data.instruct.llava_instruct.pad_to_square={str(not padded).lower()}"
    )
    with pytest.raises(ConfigError, match=wrong):
        grid(*given)
    assert grid(*given, f"engine.pad_to_square={str(not padded).lower()}")
    assert grid(*given, f"engine.pad_to_square={str(padded).lower()}")  # asked for
    assert grid(*given, "data.safety.vlguard.pad_to_square=" + str(padded).lower())  # some are as they are asked


def test_rows_that_are_named_and_that_no_stage_reads_are_refused(grid: Grid, tmp_path: Path) -> None:
    """The laptop's adaptation reads pairs alone; a user's instructions would be passed over."""
    (tmp_path / "ours.jsonl").write_text('{"prompt": "what", "completion": "that"}\n')
    given = ["+experiment=smollm2_laptop", "data=jsonl", "safety_tune=none"]
    given += [f"data.{p}.mine.dataset.source.folder={tmp_path / 'ours.jsonl'}" for p in ("projector", "instruct")]
    with pytest.raises(ConfigError, match=r"data.instruct.mine.dataset.source.folder: no stage reads instruct rows here"):
        grid(*given)
    assert grid(*given, "adaptation.pairs=0.5")
