"""Filtered adaptation: harmful rows are replaced by further ones, as many are trained on, and the manifest says which went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import train_tiny as tiny

from vlsafe import registry
from vlsafe.data.components import MicroworldData
from vlsafe.data.rows import TrainingData
from vlsafe.errors import CheckError, ConfigError
from vlsafe.eval.base import Judge
from vlsafe.registry import make
from vlsafe.settings import spec_of
from vlsafe.stage import Execution, StageContext
from vlsafe.train import filter as filters
from vlsafe.train.filter import Wanted

STEPS = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3}
LLAVA = {"name": "llava", "projector": STEPS, "instruct": {**STEPS, "steps": 6}}
SINGLE = {"name": "single_stage", "optimization": {**STEPS, "steps": 10}, "pairs": 0.4}
SFT = {"name": "sft", "optimization": STEPS, "helpful": 0.25, "order": "joint"}
PLANTED = MicroworldData(planted=0.2)


@dataclass(frozen=True)
class Rows(TrainingData):
    """Of every five rows one is harmful and one can't be told, unless `clean`; `most` rows in all."""

    component_name = "rows"
    clean: bool = False
    most: int = 10_000

    def supervised(self, purpose: Any, n: int, seed: int) -> Sequence[Any]:
        rows = tiny.supervised(min(n, self.most), seed + len(purpose), 1.0 if purpose == "projector" else 0.5)
        kinds = {} if self.clean else {0: "harmful", 1: "unclear"}
        return [{**row, "source": kinds.get(i % 5, purpose)} for i, row in enumerate(rows)]


@dataclass(frozen=True)
class BySource(Judge):
    """Tells by the source, and says nothing of `unclear`."""

    component_name = "by_source"

    def harmful(self, rows: Sequence[Any]) -> list[bool | None]:
        return [None if row["source"] == "unclear" else row["source"] == "harmful" for row in rows]


@pytest.fixture(autouse=True)
def by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setitem(registry._components, ("judge", "by_source"), BySource)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny.llava(tmp_path_factory.mktemp("parent"))


def run(parent: Path, folder: Path, component: Any, **how: Any) -> dict[str, Any]:
    ctx = StageContext(folder / "out", folder / "work", {"model": parent}, Execution(device="cpu"))
    component.run(how.pop("data", Rows()), ctx, **how)
    phases: dict[str, Any] = ctx.facts["phases"]
    return phases


def read_rows(data: TrainingData, purpose: Any, n: int, seed: int, name: str | None, most_removed: float) -> Any:
    wanted = Wanted(data, purpose, n, seed, filters.filter_judge(name), most_removed)
    wanted.sift(StageContext(Path(), Path()), lambda note: None)
    return wanted.read()


def text(row: Any) -> tuple[Any, ...]:
    return (row["source"], str(row["prompt"]), str(row["completion"]), *(picture.tobytes() for picture in row["images"]))


def test_exactly_the_planted_rows_go_and_the_next_harmless_ones_come() -> None:
    kept = read_rows(PLANTED, "instruct", 600, 3, "exact", 0.5)
    source = PLANTED.supervised("instruct", 2000, 3)
    harmless = [i for i, row in enumerate(source) if row["source"] != "planted"][:600]
    assert [text(row) for row in kept] == [text(source[i]) for i in harmless]
    facts = kept.facts["filter"]["instruct"]
    gone = [f"instruct/{i}" for i in range(harmless[-1] + 1) if source[i]["source"] == "planted"]
    assert facts == {
        "judge": "exact v1", "rows_read": harmless[-1] + 1, "rows_removed": len(gone),
        "harmful_by_source": {"planted": len(gone)}, "unclear_by_source": {}, "removed_ids": gone,
    }  # fmt: skip
    assert len(gone) > 90


def test_where_nothing_is_planted_a_filter_changes_no_row() -> None:
    for purpose in ("projector", "instruct"):
        kept, clean = (read_rows(MicroworldData(), purpose, 300, 3, f, 0.0) for f in ("exact", None))
        assert [text(row) for row in kept] == [text(row) for row in clean]


@pytest.mark.parametrize("settings", [LLAVA, SINGLE])
def test_a_filtered_adaptation_has_as_many_rows_and_steps(parent: Path, tmp_path: Path, settings: Any) -> None:
    plain = run(parent, tmp_path / "plain", make("adaptation", settings), data=Rows(clean=True))
    filtered = run(parent, tmp_path / "filtered", make("adaptation", {**settings, "filter": "by_source"}))
    assert list(filtered) == list(plain)
    read: dict[str, Any] = {}
    for name, phase in filtered.items():
        assert phase["steps"] == plain[name]["steps"]
        assert sum(phase["rows_by_source"].values()) == sum(plain[name]["rows_by_source"].values())
        assert not {"harmful", "unclear"} & set(phase["rows_by_source"])
        assert "filter" not in plain[name]
        read |= phase["filter"]
    assert list(read) == ["projector", "instruct"]
    for facts in read.values():
        counted = [*facts["harmful_by_source"].items(), *facts["unclear_by_source"].items()]
        assert [source for source, _ in counted] == ["harmful", "unclear"]
        assert facts["rows_removed"] == sum(n for _, n in counted) == len(facts["removed_ids"])
    assert read["instruct"]["removed_ids"][:4] == ["instruct/0", "instruct/1", "instruct/5", "instruct/6"]


def test_joint_training_filters_what_adaptation_brings(parent: Path, tmp_path: Path) -> None:
    adaptation = make("adaptation", {**LLAVA, "filter": "by_source"})
    phases = run(parent, tmp_path, make("safety_tune", SFT), adaptation=adaptation)
    assert phases["instruct"]["rows_by_source"] == {
        "instruct": 48 + 8,
        "harmful": 5,
        "unclear": 5,
        "safety": 14,
    }  # 24: the tuning's
    assert list(phases["instruct"]["filter"]) == ["instruct"]


def test_tuning_mixes_in_what_the_data_calls_helpful_not_what_adaptation_may_hold(parent: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Harmless(Rows):
        def helpful(self, n: int, seed: int) -> Sequence[Any]:
            return [{**row, "source": "helpful"} for row in tiny.supervised(n, seed)]

    phases = run(parent, tmp_path, make("safety_tune", {**SFT, "order": "after"}), data=Harmless(clean=True))
    assert phases["sft"]["rows_by_source"] == {"helpful": 8, "safety": 24}


@pytest.mark.parametrize("text_only", [False, True])
def test_a_tuning_after_a_filtered_adaptation_does_not_bring_removed_rows_back(
    parent: Path, tmp_path: Path, text_only: bool
) -> None:
    tuning = make("safety_tune", {**SFT, "order": "after"})
    plain = run(parent, tmp_path / "plain", tuning, text_only=text_only)["sft"]
    assert {"harmful", "unclear"} & set(plain["rows_by_source"])  # without a filter they are there
    filtered = make("adaptation", {**LLAVA, "filter": "by_source"})
    sft = run(parent, tmp_path / "filtered", tuning, text_only=text_only, adaptation=filtered)["sft"]
    assert sft["rows_by_source"]["instruct"] == 8
    assert set(sft["filter"]["instruct"]["harmful_by_source"]) == {"harmful"}
    assert sft["filter"]["instruct"]["rows_removed"] > 0


def test_a_filter_is_in_the_key_of_a_tuning_that_mixes_in_rows_of_the_adaptation(grid: Any) -> None:
    def planned(*overrides: str) -> tuple[Any, Any]:
        from vlsafe.plan import make_plan

        plan = make_plan(grid("+experiment=paper_llama2", *overrides))
        kinds = {stage.kind: stage for stage in plan.stages.values() if stage.kind in ("adaptation", "safety_tune")}
        return kinds["adaptation"], kinds["safety_tune"]

    for tuning, theirs in (("sft", True), ("dpo", False)):
        adapted, tuned = planned(f"safety_tune={tuning}", "adaptation.filter=llama_guard")
        assert ("filter" in tuned.spec, tuned.verdicts == adapted.verdicts) == (theirs, theirs)
        assert "filter" not in planned(f"safety_tune={tuning}")[1].spec


def test_a_filter_that_would_remove_too_much_stops_before_training() -> None:
    with pytest.raises(
        CheckError, match=r"would remove 40 of 100 instruct rows \(20 since it can't tell\), .*most_removed=0.3 allows"
    ):
        read_rows(Rows(), "instruct", 100, 0, "by_source", 0.3)
    assert len(read_rows(Rows(), "instruct", 100, 0, "by_source", 0.42)) == 100
    with pytest.raises(CheckError, match=r"would remove 1 of 1 instruct rows \(0 since"):
        read_rows(Rows(), "instruct", 1, 0, "by_source", 1.0)  # nothing is left
    with pytest.raises(CheckError, match=r"leaves 66 of 110 instruct rows, the source has no more, and 100 are needed"):
        read_rows(Rows(most=110), "instruct", 100, 0, "by_source", 0.5)


def test_a_filter_that_removes_too_much_is_not_asked_about_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 of 100 would be removed: beyond what chance explains of 1,000 rows where 30 are allowed, and not where 39 are."""
    with pytest.raises(CheckError, match=r"would remove 400 of the first 1000 instruct rows \(200 since it can't tell\)"):
        read_rows(Rows(), "instruct", 2500, 0, "by_source", 0.3)
    with pytest.raises(CheckError, match=r"would remove 1000 of 2500 instruct rows"):
        read_rows(Rows(), "instruct", 2500, 0, "by_source", 0.39)
    in_parts = read_rows(Rows(), "instruct", 2500, 0, "by_source", 0.42)
    monkeypatch.setattr(filters, "FIRST_LOOK", 10**6)
    at_once = read_rows(Rows(), "instruct", 2500, 0, "by_source", 0.42)
    assert in_parts.facts == at_once.facts and list(map(text, in_parts)) == list(map(text, at_once))


def test_a_judge_of_other_words_keeps_nothing_as_safe() -> None:
    with pytest.raises(CheckError, match=r"filter=exact would remove 20 of 20 instruct rows \(20 since it can't tell\)"):
        read_rows(Rows(), "instruct", 20, 0, "exact", 0.5)


def test_few_ids_are_listed_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "LISTED_IDS", 7)
    facts = read_rows(PLANTED, "instruct", 200, 3, "exact", 0.5).facts["filter"]["instruct"]
    assert len(facts["removed_ids"]) == 7 < facts["rows_removed"] == facts["harmful_by_source"]["planted"]


@pytest.mark.parametrize("settings", [LLAVA, SINGLE])
def test_only_a_judge_that_tells_harm_can_filter(settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"adaptation.filter=keyword: .* can't tell harm in training rows; .*exact"):
        make("adaptation", {**settings, "filter": "keyword"}).check()
    with pytest.raises(ConfigError, match=r"adaptation.filter.name=exakt: no such judge; did you mean 'exact'\?"):
        make("adaptation", {**settings, "filter": "exakt"}).check()
    make("adaptation", {**settings, "filter": "exact"}).check()
    make("adaptation", settings).check()


def test_the_judge_and_what_it_calls_harmful_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsafe.microworld.judge import Exact

    plain, filtered = make("adaptation", LLAVA), make("adaptation", {**LLAVA, "filter": "exact"})
    assert plain.filter_spec() == {}
    assert spec_of(plain) == spec_of(make("adaptation", {**LLAVA, "most_removed": 0.1}))
    assert filtered.filter_spec() == {"filter": {"name": "exact", "version": 1}}
    monkeypatch.setattr(Exact, "harm_version", 2)
    assert filtered.filter_spec() == {"filter": {"name": "exact", "version": 2}}


def test_a_single_stage_trains_both_parts_on_both_kinds_of_rows(parent: Path, tmp_path: Path) -> None:
    data = Rows(clean=True)
    (alone,) = run(parent, tmp_path / "alone", make("adaptation", SINGLE), data=data).values()
    assert alone["rows_by_source"] == {"projector": 32, "instruct": 48}
    assert set(alone["trainable_parameters"]) == {"language_model", "projector"}
    assert alone["steps"] == 10
    (joint,) = run(
        parent, tmp_path / "joint", make("safety_tune", SFT), adaptation=make("adaptation", SINGLE), data=data
    ).values()
    assert joint["steps"] == 14
    assert joint["rows_by_source"] == {"projector": 32, "instruct": 48 + 8, "safety": 24}
