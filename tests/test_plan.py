"""Plans: how many stages a grid needs, and which keys move with which setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vlsafe.errors import ConfigError
from vlsafe.execute.task import order_of
from vlsafe.keys import stage_key
from vlsafe.plan import Plan, make_plan
from vlsafe.stage import STAGE_KINDS

Grid = Callable[..., Any]


def counts(plan: Plan) -> dict[str, int]:
    return {kind: n for kind, n in plan.counts().items() if kind in STAGE_KINDS[:4]}


@pytest.mark.parametrize(
    ("overrides", "cells", "expected"),
    [
        # adaptations × tunings × merges; a merge for each distinct pair
        (("adaptation=none,llava", "safety_tune=none,sft,dpo", "merge=none,linear,ties"), 18, (2, 1, 4, 10)),
        (("safety_tune=sft,dpo", "merge=ties"), 2, (2, 1, 2, 2)),
        (("safety_tune=none,sft,dpo", "merge=none,linear,ties"), 9, (2, 1, 2, 6)),
        ((), 1, (2, 1, 1, 0)),
        (("adaptation=none", "safety_tune=none", "merge=none,linear,ties"), 3, (2, 0, 0, 0)),  # collapsed
        (("safety_tune.order=after,before,joint", "merge=linear"), 3, (2, 2, 3, 3)),
        (("seed=0,1", "merge=none,linear"), 4, (2, 2, 2, 2)),
        (("model.seed=0,1", "merge=linear"), 2, (4, 2, 2, 2)),
        (("merge=ties", "merge.density=0.2,0.5,0.8"), 3, (2, 1, 1, 3)),
        (("safety_tune=none", "safety_tune.order=after,before,joint", "merge=linear"), 3, (2, 1, 0, 1)),
        (("judge=exact,keyword", "merge=linear"), 2, (2, 1, 1, 1)),
        (("merge=linear,slerp", "merge.t=0.3,0.5"), 4, (2, 1, 1, 4)),
        (("merge=linear", "merge.t=null,0.5"), 2, (2, 1, 1, 1)),  # halfway is equal weights
        (("merge=ties,dare_ties", "merge.density=0.2,0.5"), 4, (2, 1, 1, 4)),
    ],
)
def test_stages_are_shared(grid: Grid, overrides: tuple[str, ...], cells: int, expected: tuple[int, ...]) -> None:
    plan = make_plan(grid(*overrides))
    assert len(plan.cells) == cells
    assert tuple(counts(plan).values()) == expected


def test_roles_and_their_stages_by_order(grid: Grid) -> None:
    after, before, joint = (make_plan(grid(f"safety_tune.order={o}", "merge=linear")) for o in ("after", "before", "joint"))
    assert list(after.cells[0].roles) == ["unaligned", "base", "adapted", "tuned", "merged"]
    assert list(before.cells[0].roles) == ["unaligned", "base", "tuned", "adapted", "merged"]
    assert list(joint.cells[0].roles) == ["unaligned", "base", "tuned", "merged"]
    for plan, pair in ((after, ("adapted", "tuned")), (before, ("tuned", "adapted")), (joint, ("base", "tuned"))):
        roles = plan.cells[0].roles
        merge = plan.stages[roles["merged"]]
        assert (merge.parents["model_0"], merge.parents["model_1"]) == (roles[pair[0]], roles[pair[1]])
        assert merge.parents["carrier"] == roles[pair[1]]
    tuned_first = before.stages[before.cells[0].roles["tuned"]]
    assert tuned_first.parents == {"model": before.cells[0].roles["base"]}
    assert tuned_first.spec["text_only"] is True
    assert before.stages[before.cells[0].roles["adapted"]].parents == {"model": tuned_first.id}
    assert joint.stages[joint.cells[0].roles["tuned"]].spec["adaptation"]["name"] == "llava"


def test_adapting_after_the_same_tuning_is_another_adaptation(grid: Grid) -> None:
    plan = make_plan(grid("safety_tune.order=before", "safety_tune=none,sft"))
    assert plan.counts()["adaptation"] == 2


def test_base_is_asked_text_only(grid: Grid) -> None:
    planned = make_plan(grid("merge=linear")).cells[0]
    asked = {role: {e.benchmark for e in planned.evaluations if e.role == role} for role in planned.roles}
    assert asked["base"] == {"mw_direct", "mw_wrapped", "mw_borderline_text", "mw_helpful_text"}
    assert asked["unaligned"] == asked["base"]
    assert asked["adapted"] == asked["tuned"] == asked["merged"] > asked["base"]
    assert {e.axis for e in planned.evaluations} == {"text_safety", "multimodal_safety", "over_refusal", "helpfulness"}


def test_without_adaptation_nothing_is_asked_with_pictures(grid: Grid) -> None:
    planned = make_plan(grid("adaptation=none", "merge=linear")).cells[0]
    assert len({e.benchmark for e in planned.evaluations}) == 4


def test_a_degenerate_pair_collapses(grid: Grid) -> None:
    planned = make_plan(grid("adaptation=none", "safety_tune=none", "merge=ties")).cells[0]
    assert planned.collapsed
    assert planned.final == "base"
    assert "merged" not in planned.roles


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("safety_tune=none", "merge=linear", "merge.models=[base,tuned]"), "this cell has no role 'tuned'"),
        (("merge=ties", "merge.base=bse"), r"no role 'bse'; did you mean 'base'\?"),
        (("adaptation=none", "merge=linear", "merge.carrier=adapted"), "no role 'adapted'"),
        (("merge=linear", "merge.models=[base,adapted,tuned]", "merge.weights=[1,2]"), "2 weights for 3 models"),
    ],
)
def test_a_role_the_cell_can_not_have_is_an_error(grid: Grid, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(*overrides)


@pytest.mark.parametrize(
    ("override", "moves"),
    [
        ("engine.batch_size=7", ""),
        ("jobs=3", ""),
        ("threads=2", ""),
        ("store=elsewhere", ""),
        ("merge.max_shard_gb=1", ""),
        ("judge=keyword", "judge"),
        ("eval.limit=7", "generate judge"),
        ("engine.max_new_tokens=7", "generate judge"),
        ("merge.density=0.3", "merge generate judge"),
        ("merge.dtype=bfloat16", "merge generate judge"),
        ("safety_tune.helpful=0.1", "safety_tune merge generate judge"),
        ("seed=1", "adaptation safety_tune merge generate judge"),
        ("adaptation.instruct.learning_rate=1e-5", "adaptation safety_tune merge generate judge"),
        ("model.seed=1", "model adaptation safety_tune merge generate judge"),
        ("model.world.seed=1", "model adaptation safety_tune merge generate judge"),
    ],
)
def test_keys_move_only_with_what_changes_results(grid: Grid, override: str, moves: str) -> None:
    before, after = make_plan(grid("merge=ties")), make_plan(grid("merge=ties", override))
    moved = [kind for kind in STAGE_KINDS if {s.key for s in before.stages.values() if s.kind == kind}
             != {s.key for s in after.stages.values() if s.kind == kind}]  # fmt: skip
    assert " ".join(moved) == moves


def test_one_model_over_a_base_is_a_merge_and_no_collapse(grid: Grid) -> None:
    planned = make_plan(grid("merge=ties", "merge.models=[adapted]", "merge.density=0.1"))
    assert not planned.cells[0].collapsed
    assert planned.cells[0].final == "merged"


def test_a_blank_picture_never_reaches_an_untrained_projector(grid: Grid) -> None:
    plan = make_plan(grid("adaptation=none,llava", "engine.text_image=blank_image"))
    trained = {
        id
        for c in plan.cells
        for role, id in c.roles.items()
        if c.cell.choices["adaptation"] != "none" and role not in ("unaligned", "base")
    }
    for stage in plan.stages.values():
        if stage.kind == "generate":
            blank = stage.settings["engine"]["text_image"] == "blank_image"
            assert blank == (stage.parents["model"] in trained)


def test_another_alignment_starts_from_the_same_unaligned_model(grid: Grid) -> None:
    before, after = (make_plan(grid(f"model.alignment.steps={n}")).cells[0].roles for n in (10, 20))
    assert before["unaligned"] == after["unaligned"]
    assert before["base"] != after["base"]


@pytest.mark.parametrize("setting", ["data.planted=0.3", "data.replay=0.3"])
def test_rows_of_the_adaptation_alone_move_no_key_of_a_tuning_before_it(grid: Grid, setting: str) -> None:
    def tuned(order: str, *more: str) -> str:
        return make_plan(grid(f"safety_tune.order={order}", *more)).cells[0].roles["tuned"]

    assert tuned("before") == tuned("before", setting)
    assert tuned("joint") != tuned("joint", setting)


def test_what_a_stage_does_not_read_moves_no_key(grid: Grid) -> None:
    before, after = make_plan(grid()), make_plan(grid("data.borderline=0.5"))
    for kind, same in (("adaptation", True), ("safety_tune", False)):
        keys = [{s.key for s in plan.stages.values() if s.kind == kind} for plan in (before, after)]
        assert (keys[0] == keys[1]) == same
    joint = [make_plan(grid("safety_tune.order=joint", f"safety_tune.optimization.learning_rate={r}")) for r in (0.1, 0.2)]
    assert set(joint[0].stages) == set(joint[1].stages)


def test_a_filter_brings_its_judge_into_the_key_and_later_settings_bring_nothing(grid: Grid) -> None:
    def adaptations(*overrides: str) -> dict[str, Any]:
        return {s.key: s for s in make_plan(grid("adaptation=llava", *overrides)).stages.values() if s.kind == "adaptation"}

    ((plain, stage),) = adaptations().items()
    assert "filter" not in {**stage.spec, **stage.spec["adaptation"]}
    assert not {"planted", "replay", "size"} & {*stage.spec["data"], *stage.spec["data"]["world"]}
    ((_, filtered),) = (found := adaptations("adaptation.filter=exact")).items()
    assert filtered.spec["filter"] == {"name": "exact", "version": 1}
    assert adaptations("adaptation.most_removed=0.9").keys() == {plain}
    moved = [found, adaptations("data.planted=0.1"), adaptations("data.replay=0.1"), adaptations("model.world.size=small")]
    assert len({key for keys in moved for key in keys} | {plain}) == 5
    joint = make_plan(grid("adaptation=llava", "adaptation.filter=exact", "safety_tune.order=joint"))
    assert [s.spec["filter"]["name"] for s in joint.stages.values() if s.kind == "safety_tune"] == ["exact"]


def test_trainings_with_one_filter_share_what_its_judge_says(grid: Grid) -> None:
    def shared(*overrides: str) -> list[str | None]:
        plan = make_plan(grid("adaptation=llava", *overrides))
        kinds = ("adaptation", "safety_tune")
        return [order_of(s).verdicts for s in plan.stages.values() if s.kind in kinds and "adaptation" in s.spec]

    assert shared() == [None]
    (one,) = shared("adaptation.filter=exact")
    rates = shared("adaptation.filter=exact", "adaptation.instruct.learning_rate=0.001,0.002", "adaptation.checkpoints=2")
    assert (len(rates), set(rates)) == (6, {one})
    joint = shared("adaptation.filter=exact", "safety_tune.order=joint")
    assert (one is not None, set(joint), shared("adaptation.filter={name: exact}")) == (True, {one}, [one])
    assert shared("adaptation.filter=exact", "data.planted=0.1") != [one]


def test_cells_with_other_settings_of_a_filter_are_two(grid: Grid) -> None:
    guards = "adaptation.filter={name: llama_guard},{name: llama_guard, refusals: vlguard}"
    cells = grid("adaptation=llava", guards)
    assert [cell.flat().get("adaptation.filter.refusals") for cell in cells] == [None, "vlguard"]
    assert make_plan(cells).counts()["adaptation"] == 2
    assert len({cell.flat()["adaptation.filter"] for cell in cells}) == 1
    alike = grid("adaptation=llava", "adaptation.filter=llama_guard,{name: llama_guard, batch_size: 4}")
    assert make_plan(alike).counts()["adaptation"] == 1


def test_filtered_is_llava_with_a_judge_and_replay_the_same_world_with_other_rows(grid: Grid) -> None:
    cells = grid("adaptation=llava,filtered", "data=microworld,replay")
    assert {cell.components["adaptation"].component_name for cell in cells} == {"llava"}
    assert {cell.components["data"].world for cell in cells} == {cells[0].components["model"].world}
    assert make_plan(cells).counts()["adaptation"] == 4


def test_what_can_not_filter_or_be_mixed_stops_before_the_plan(grid: Grid) -> None:
    with pytest.raises(ConfigError, match=r"adaptation.filter=keyword: .* can't tell harm in training rows"):
        grid("adaptation=filtered", "adaptation.filter=keyword")
    with pytest.raises(ConfigError, match=r"data.planted=0.9 and data.replay=0.2: together more than all"):
        grid("data=replay", "data.replay=0.2", "data.planted=0.9")


def test_a_merge_is_known_by_its_weights_however_they_are_set(grid: Grid) -> None:
    def merges(*overrides: str) -> set[str]:
        return {s.key for s in make_plan(grid("merge=linear", *overrides)).stages.values() if s.kind == "merge"}

    assert merges() == merges("merge.t=0.5") == merges("merge.weights=[0.5,0.5]")
    assert merges("merge.t=0.9") == merges("merge.weights=[0.1,0.9]") != merges()


def test_a_merge_stage_is_given_weights_and_no_t(grid: Grid) -> None:
    plan = make_plan(grid("merge=linear", "merge.t=0.25"))
    stage = plan.stages[plan.cells[0].roles["merged"]]
    assert (stage.settings["merge"]["weights"], stage.settings["merge"]["t"]) == ([0.75, 0.25], None)
    assert stage.spec["weights"] == [0.75, 0.25]
    assert "t" not in stage.spec["merge"]  # which came later: the keys of linear are as before it


def test_only_random_merges_have_a_seed(grid: Grid) -> None:
    for merge, moves in (("ties", False), ("dare_linear", True), ("dare_ties", True)):
        plans = [make_plan(grid("safety_tune=none", f"merge={merge}", *o)) for o in ((), ("merge.seed=1",) if moves else ())]
        keys = [{s.key for s in plan.stages.values() if s.kind == "merge"} for plan in plans]
        assert (keys[0] != keys[1]) is moves
        spec = next(s.spec for s in plans[0].stages.values() if s.kind == "merge")
        assert ("seed" in spec["merge"]) is moves


def test_answers_of_one_model_with_another_limit_are_one_family(grid: Grid) -> None:
    small, large = make_plan(grid("eval.limit=5")), make_plan(grid("eval.limit=50"))

    def families(plan: Plan) -> list[Any]:
        return [s.family for s in plan.stages.values() if s.kind == "generate"]

    assert families(small) == families(large)
    assert len(set(families(small))) == len(families(small))


def test_labels_of_more_responses_are_one_family_where_a_model_judges(grid: Grid) -> None:
    def families(*overrides: str) -> list[Any]:
        return [s.family for s in make_plan(grid(*overrides)).stages.values() if s.kind == "judge"]

    small, large = families("judge=llama_guard", "eval.limit=5"), families("judge=llama_guard", "eval.limit=50")
    assert small == large and len(set(small)) == len(small) and None not in small
    assert not set(families("judge=llama_guard", "eval.limit=5", "judge.refusals=vlguard")) & set(small)
    assert set(families("judge=keyword")) == {None}  # quicker than looking


def test_keys_are_golden() -> None:
    """A key is the same on every machine and in every release, or every store in the world is worth nothing."""
    key = stage_key(
        "merge", 1, {"merge": {"name": "ties", "density": 0.5}, "weights": [0.5, 0.5]}, {"base": "b" * 20, "carrier": "c" * 20}
    )
    assert key == "deeaed5fbea7506bdd46"
    assert key == stage_key(
        "merge", 1, {"weights": [0.5, 0.5], "merge": {"density": 0.5, "name": "ties"}}, {"carrier": "c" * 20, "base": "b" * 20}
    )
    assert key != stage_key(
        "merge", 2, {"merge": {"name": "ties", "density": 0.5}, "weights": [0.5, 0.5]}, {"base": "b" * 20, "carrier": "c" * 20}
    )


def test_a_component_s_raised_version_moves_its_key_and_those_below(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsafe.merge.methods.ties import Ties
    from vlsafe.train.tuning import Supervised

    def keys(*overrides: str) -> dict[str, str]:
        return {stage.kind: stage.key for stage in make_plan(grid("merge=ties", *overrides)).stages.values()}

    after, joint = keys(), keys("safety_tune.order=joint")
    monkeypatch.setattr(Ties, "version", 2)
    assert {kind for kind, key in keys().items() if key != after[kind]} == {"merge", "generate", "judge"}
    monkeypatch.setattr(Supervised, "version", 2)
    assert keys("safety_tune.order=joint")["safety_tune"] != joint["safety_tune"]
    assert keys()["adaptation"] == after["adaptation"]
