"""Adaptation and safety tuning as stages: which rows each order sees, which parts it trains, and what can't be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny

from vlsafe.data.rows import TrainingData
from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.load import load_model, load_processor, save_model, template_hash
from vlsafe.registry import make
from vlsafe.settings import spec_of
from vlsafe.stage import Execution, StageContext
from vlsafe.train.parts import part_of
from vlsafe.train.tuning import draw

STEPS = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}
LLAVA = {"name": "llava", "projector": STEPS, "instruct": {**STEPS, "steps": 6}}
SFT = {"name": "sft", "optimization": STEPS, "helpful": 0.25}
DPO = {"name": "dpo", "optimization": STEPS, "helpful": 0.25, "beta": 0.1}
KTO = {**DPO, "name": "kto"}
LORA = {"lora": {"rank": 2, "alpha": 4.0}}


@dataclass(frozen=True)
class Rows(TrainingData):
    """Rows whose source says what they were asked for as."""

    component_name = "rows"
    pictures: float = 0.5

    def supervised(self, purpose: Any, n: int, seed: int) -> Sequence[Any]:
        share = 1.0 if purpose == "projector" else self.pictures
        return [{**row, "source": purpose} for row in tiny.supervised(n, seed + len(purpose), share)]

    def preferences(self, purpose: Any, n: int, seed: int) -> Sequence[Any]:
        return [{**row, "source": purpose} for row in tiny.preferences(n, seed + len(purpose), self.pictures)]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny.llava(tmp_path_factory.mktemp("parent"))


def run(parent: Path, folder: Path, component: Any, data: Rows | None = None, **how: Any) -> tuple[dict[str, Any], set[str]]:
    """The facts, and the parts whose weights differ from the parent's."""
    ctx = StageContext(folder / "out", folder / "work", {"model": parent}, Execution(device="cpu"))
    component.run(data or Rows(), ctx, **how)
    before, after = load_model(parent, "cpu").state_dict(), load_model(ctx.out, "cpu").state_dict()
    assert ctx.facts["template_hash"] == template_hash(load_processor(ctx.out))
    return ctx.facts["phases"], {part_of(n) for n in before if not torch.equal(before[n], after[n])}


def test_llava_trains_the_projector_and_then_both(parent: Path, tmp_path: Path) -> None:
    phases, changed = run(parent, tmp_path, make("adaptation", LLAVA))
    assert list(phases) == ["projector", "instruct"]
    assert phases["projector"]["rows_by_source"] == {"projector": 32}
    assert list(phases["projector"]["trainable_parameters"]) == ["projector"]
    assert phases["instruct"]["rows_by_source"] == {"instruct": 48}
    save_model(load_model(parent, "cpu"), load_processor(parent), tmp_path / "parent")
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "parent" / name).read_text()
    assert changed == {"language_model", "projector"}


@pytest.mark.parametrize(
    ("settings", "helpful", "harmful"),
    [
        (SFT, "instruct", "safety"),
        (DPO, "helpful_preference", "preference"),
        (KTO, "helpful_preference", "preference"),
        ({**KTO, **LORA}, "helpful_preference", "preference"),
    ],
)
def test_tuning_mixes_helpful_rows_in(parent: Path, tmp_path: Path, settings: Any, helpful: str, harmful: str) -> None:
    phases, changed = run(parent, tmp_path, make("safety_tune", settings))
    (phase,) = phases.values()
    assert phase["rows_by_source"] == {helpful: 8, harmful: 24}
    assert phase["rows_with_pictures"] > 0
    assert changed == {"language_model", "projector"}


@pytest.mark.parametrize("settings", [SFT, DPO, KTO, {**SFT, **LORA}])
def test_before_adaptation_only_text_and_the_language_model(parent: Path, tmp_path: Path, settings: Any) -> None:
    phases, changed = run(parent, tmp_path, make("safety_tune", settings), text_only=True)
    (phase,) = phases.values()
    assert sum(phase["rows_by_source"].values()) == 32
    assert phase["rows_with_pictures"] == 0
    assert changed == {"language_model"}


@pytest.mark.parametrize(("adaptation", "adapted"), [(LLAVA, 0), ({**LLAVA, **LORA}, 14)])
def test_joint_sees_what_the_sequence_would_see(parent: Path, tmp_path: Path, adaptation: Any, adapted: int) -> None:
    tuning = make("safety_tune", {**SFT, "order": "joint"})
    phases, changed = run(parent, tmp_path, tuning, adaptation=make("adaptation", adaptation))
    assert [p["adapted_layers"] for p in phases.values()] == [0, adapted]
    assert list(phases) == ["projector", "instruct"]
    assert phases["instruct"]["rows_by_source"] == {"instruct": 48 + 8, "safety": 24}
    assert phases["instruct"]["steps"] == 10
    assert changed == {"language_model", "projector"}


def test_adapters_change_linear_layers_of_the_blocks_alone(parent: Path, tmp_path: Path) -> None:
    phases, _ = run(parent, tmp_path, make("adaptation", {**LLAVA, **LORA}))
    before, after = load_model(parent, "cpu").state_dict(), load_model(tmp_path / "out", "cpu").state_dict()
    changed = {n for n in before if part_of(n) == "language_model" and not torch.equal(before[n], after[n])}
    linear = {n for n in before if ".layers." in n and n.endswith("_proj.weight") and part_of(n) == "language_model"}
    assert changed == linear
    assert phases["instruct"]["adapted_layers"] == len(linear) == 14
    ranks = {int(torch.linalg.matrix_rank(after[n] - before[n], rtol=1e-3)) for n in changed}
    assert ranks == {2}
    sizes = phases["instruct"]["trainable_parameters"]
    assert sizes["language_model"] == sum(2 * sum(before[n].shape) for n in linear)
    assert sizes["projector"] == phases["projector"]["trainable_parameters"]["projector"]


def test_tuning_without_helpful_rows_or_with_nothing_else(parent: Path, tmp_path: Path) -> None:
    for share, source in ((0.0, "safety"), (1.0, "instruct")):
        phases, _ = run(parent, tmp_path / source, make("safety_tune", {**SFT, "helpful": share}))
        assert list(phases["sft"]["rows_by_source"]) == [source]


def test_seeds_are_part_of_the_result(parent: Path, tmp_path: Path) -> None:
    models = []
    for i, seed in enumerate((0, 0, 1)):
        run(parent, tmp_path / str(i), make("safety_tune", {**SFT, "seed": seed}))
        models.append(load_model(tmp_path / str(i) / "out", "cpu").lm_head.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_none_trains_nothing() -> None:
    for group in ("adaptation", "safety_tune"):
        component = make(group, {"name": "none"})
        assert not component.trains
        assert component.cost_units == 0.0
    assert make("safety_tune", {"name": "none"}).order == "after"
    assert make("adaptation", LLAVA).trains
    assert make("adaptation", LLAVA).cost_units == 10.0


def test_what_cannot_be_is_said_at_planning() -> None:
    for settings in (DPO, KTO):
        with pytest.raises(ConfigError, match=r"safety_tune.order=joint: preference pairs can't be mixed"):
            make("safety_tune", {**settings, "order": "joint"}).check()
        with pytest.raises(ConfigError, match=r"safety_tune.lora.dropout=0.5: .* without dropout; set 0"):
            make("safety_tune", {**settings, "lora": {**LORA["lora"], "dropout": 0.5}}).check()
    with pytest.raises(ConfigError, match=r"safety_tune.lora: joint training trains as the adaptation does; set"):
        make("safety_tune", {**SFT, **LORA, "order": "joint"}).check()
    with pytest.raises(ConfigError, match=r"safety_tune.lora: adapters go into .* set safety_tune.lora=null"):
        make("safety_tune", {**SFT, **LORA, "trainable": ["projector"]}).check()
    with pytest.raises(ConfigError, match=r"lora.projector_learning_rate: the projector is not trained; set it to null"):
        idle = {**LORA["lora"], "projector_learning_rate": 1e-3}
        make("safety_tune", {**SFT, "lora": idle, "trainable": ["language_model"]}).check()
    rate = {"projector_learning_rate": 1e-3}
    for settings, why in (
        ({"trainable": ["language_model"]}, "=0.001: the projector is not trained; set it to null"),
        (
            {"trainable": ["projector"]},
            "=0.001: nothing but the projector is trained; set safety_tune.optimization.learning_rate",
        ),
        ({"lora": {**LORA["lora"], "projector_learning_rate": 1e-4}}, "=0.001: lora.projector_learning_rate=0.0001 is set too"),
    ):
        with pytest.raises(ConfigError, match=f"safety_tune.optimization.projector_learning_rate{why}"):
            make("safety_tune", {**SFT, "optimization": {**STEPS, **rate}, **settings}).check()
    with pytest.raises(ConfigError, match=r"adaptation.projector.projector_learning_rate=0.001: nothing but the projector"):
        make("adaptation", {**LLAVA, "projector": {**STEPS, **rate}}).check()
    make("adaptation", {**LLAVA, **LORA, "instruct": {**STEPS, **rate}}).check()
    for size in (2, 7):
        with pytest.raises(ConfigError, match=rf"safety_tune.optimization.batch_size={size}: .* set an even number from 4 on"):
            make("safety_tune", {**KTO, "optimization": {**STEPS, "batch_size": size}}).check()
    with pytest.raises(ConfigError, match="only the language model can be tuned"):
        make("safety_tune", {**SFT, "order": "before", "trainable": ["projector"]}).check()
    with pytest.raises(ConfigError, match=r"safety_tune.trainable=\[\]"):
        make("safety_tune", {**SFT, "trainable": []}).check()
    with pytest.raises(ConfigError, match=r"safety_tune.helpful=1.5: must be between 0 and 1"):
        make("safety_tune", {**SFT, "helpful": 1.5})
    with pytest.raises(ConfigError, match=r"adaptation.projector.stepz: unknown setting; did you mean 'steps'"):
        make("adaptation", {**LLAVA, "projector": {**STEPS, "stepz": 1}})
    make("safety_tune", {**SFT, "order": "joint"}).check()
    for trainable in (["language_model"], ["projector"], ["language_model", "projector", "vision_tower"]):
        with pytest.raises(
            ConfigError, match=r"joint training trains what .* set \[language_model, projector\], or .*order=after"
        ):
            make("safety_tune", {**SFT, "order": "joint", "trainable": trainable}).check()


@pytest.mark.parametrize("settings", [SFT, DPO, KTO])
def test_without_pictures_only_the_language_model_can_be_tuned(settings: Any) -> None:
    for trainable in (["projector"], ["language_model", "vision_tower"]):
        tuning = make("safety_tune", {**settings, "trainable": trainable})
        tuning.check()  # after adaptation there are pictures
        with pytest.raises(ConfigError, match=r"without it, there are no pictures.*; set \[language_model\] or"):
            tuning.check_text_only()
    for trainable in (["language_model"], ["projector", "language_model"]):
        make("safety_tune", {**settings, "trainable": trainable}).check_text_only()
    make("safety_tune", {"name": "none"}).check_text_only()


def test_the_key_of_a_joint_training_has_what_changes_it() -> None:
    def spec(**other: Any) -> dict[str, Any]:
        found: dict[str, Any] = make("safety_tune", {**SFT, "order": "joint", **other}).joint_spec()
        return found

    assert spec() == {"name": "sft", "rows": 32, "helpful": 0.25, "seed": 0}
    assert spec() == spec(optimization={"steps": 8, "batch_size": 4, "learning_rate": 9.0, "weight_decay": 0.1})
    assert spec() != spec(optimization={**STEPS, "steps": 5})
    assert spec() != spec(helpful=0.5)
    assert spec() != spec(seed=1)


def test_the_key_knows_adapters_only_where_there_are_some() -> None:
    for group, settings in (("safety_tune", SFT), ("safety_tune", DPO), ("safety_tune", KTO), ("adaptation", LLAVA)):
        assert "lora" not in spec_of(make(group, settings))
        assert spec_of(make(group, {**settings, **LORA}))["lora"] == {
            "rank": 2,
            "alpha": 4.0,
            "dropout": 0.0,
            "targets": [],
            "projector_learning_rate": None,
        }


def test_data_without_text_rows_is_refused_for_text_only(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="rows for safety are without pictures, and 24 are needed"):
        draw(lambda n: Rows(pictures=1.0).supervised("safety", n, 0), 24, True, "safety")
