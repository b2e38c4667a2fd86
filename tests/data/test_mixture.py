"""Mixing: shares, a seeded order that grows without changing, passes that are counted; and what of it enters which key."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from vlsafe import registry
from vlsafe.data.mixture import PURPOSES, Mixture, dealt, order
from vlsafe.data.pictures import Picture
from vlsafe.errors import CheckError, ConfigError
from vlsafe.registry import Component
from vlsafe.settings import settings_of
from vlsafe.sources import DataSource, placed, sources_of

Grid = Callable[..., Any]


def lines(path: Path, n: int, word: str) -> dict[str, Any]:
    """A share of `n` rows of its own."""
    path.write_text("".join(json.dumps({"prompt": f"{word} {i}", "completion": "yes"}) + "\n" for i in range(n)))
    return {"dataset": {"name": "jsonl", "source": {"folder": str(path)}}}


def mixture(**settings: Any) -> Mixture:
    made: Mixture = registry.make("data", {"name": "mixture", **settings})
    made.check()
    return made


def seen(rows: Any) -> list[str]:
    return [row["prompt"][0]["content"][0]["text"] for row in rows]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(0, 200))
def test_at_any_row_each_set_has_had_its_share(weights: list[float], n: int) -> None:
    sets = dealt(weights, n)
    assert len(sets) == n
    for k in range(n + 1):
        given_rows = Counter(sets[:k])
        for number, weight in enumerate(weights):
            assert abs(given_rows[number] - k * weight / sum(weights)) < len(weights)
    assert sets[: n // 2] == dealt(weights, n // 2)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 90), st.integers(0, 3))
def test_each_pass_sees_every_row_once_in_an_order_of_its_own(size: int, most: int, n: int, seed: int) -> None:
    places = order(size, min(size, most), n, f"{seed}")
    step = min(size, most)
    assert len(places) == n
    for start in range(0, n, step):
        one = list(places[start : start + step])
        assert len(set(one)) == len(one)
        assert set(one) <= set(places[:step])
    assert order(size, step, n // 2, f"{seed}") == places[: n // 2]


def test_more_rows_begin_with_the_same_ones_and_seeds_differ(tmp_path: Path) -> None:
    data = mixture(
        instruct={
            "a": {**lines(tmp_path / "a.jsonl", 40, "a"), "weight": 3},
            "b": {**lines(tmp_path / "b.jsonl", 9, "b"), "weight": 1},
        }
    )
    few, many = data.supervised("instruct", 20, 0), data.supervised("instruct", 60, 0)
    assert seen(many)[:20] == seen(few) == seen(many[:20])
    assert seen(many[5:50][3:9]) == seen(many)[8:14]
    assert Counter(row["source"] for row in many) == {"a": 45, "b": 15}
    assert seen(data.supervised("instruct", 20, 1)) != seen(few)
    assert seen(data.helpful(20, 0)) == seen(few)
    assert many.facts == {
        "data_sets": {"instruct": {"a": {"rows": 45, "of": 40, "passes": 1.125}, "b": {"rows": 15, "of": 9, "passes": 1.667}}}
    }


def test_without_weights_each_set_counts_by_its_rows_and_a_cap_holds(tmp_path: Path) -> None:
    big, small = lines(tmp_path / "a.jsonl", 300, "a"), lines(tmp_path / "b.jsonl", 100, "b")
    rows = mixture(safety={"a": big, "b": small}).supervised("safety", 40, 0)
    assert Counter(row["source"] for row in rows) == {"a": 30, "b": 10}
    rows = mixture(safety={"a": {**big, "rows": 5}, "b": {**small, "rows": 5}}).supervised("safety", 40, 0)
    assert Counter(row["source"] for row in rows) == {"a": 20, "b": 20}
    assert set(Counter(seen(rows)).values()) == {4}


def test_pictures_are_padded_where_a_share_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x", "completion": "y", "image": "a.png"}) + "\n")
    share = {"dataset": {"name": "jsonl", "source": {"folder": str(tmp_path / "a.jsonl")}}}
    for square in (True, False):
        row = mixture(instruct={"a": {**share, "pad_to_square": square}}).supervised("instruct", 1, 0)[0]
        assert row["images"] == [Picture("a.png", tmp_path / "a.png", square=square)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"safety": {"l": {"dataset": {"name": "llava_instruct"}}}},
            "data.safety.l: dataset llava_instruct has no rows for safety",
        ),
        ({"instruct": {"l": {"dataset": "llava_instruct"}}}, "data.instruct.l.dataset='llava_instruct': must be {name: NAME"),
        ({"instruct": {"l": {"dataset": {"name": "jsonl"}}}}, "data.instruct.l.dataset.source: must be set"),
        ({"instruct": {"l": {"weight": 1.0}}}, "data.instruct.l.dataset: must be set"),
        ({"instructions": {}}, "data.instructions: unknown setting; did you mean 'instruct'?"),
        (
            {"preference": {"a": {"dataset": {"name": "spa_vl"}, "weight": 1}, "b": {"dataset": {"name": "safe_rlhf"}}}},
            "data.preference: b has no weight and others have",
        ),
    ],
)
def test_a_mixture_that_cant_be_is_refused_when_cells_are_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        mixture(**settings)
    assert message in str(error.value)


def test_a_purpose_without_rows_names_the_sets_that_have_some() -> None:
    data = mixture(instruct={"l": {"dataset": {"name": "llava_instruct"}}})
    data.check_purposes(["instruct"])
    with pytest.raises(ConfigError, match=r"data.preference: this cell trains on it .*: jsonl, safe_rlhf, spa_vl"):
        data.check_purposes(["instruct", "preference"])


def test_a_set_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    data = mixture(instruct={"a": {"dataset": {"name": "jsonl", "source": {"folder": str(tmp_path / "a.jsonl")}}}})
    with pytest.raises(CheckError, match=r"data.instruct.a: .*a.jsonl has no rows for instruct"):
        data.supervised("instruct", 4, 0)


def test_the_worker_builds_the_same_mixture_again(tmp_path: Path) -> None:
    data = mixture(instruct={"a": {**lines(tmp_path / "a.jsonl", 4, "a"), "weight": 1.0}})
    again = registry.make("data", json.loads(json.dumps(settings_of(data))))
    assert again == data


def test_only_what_a_stage_trains_on_enters_its_key(tmp_path: Path) -> None:
    shares = {p: {"m": lines(tmp_path / f"{p}.jsonl", 4, p)} for p in PURPOSES if p != "preference"}
    data = mixture(
        **shares, preference={"m": {"dataset": {"name": "jsonl", "source": {"folder": str(tmp_path / "not there")}}}}
    )
    used = data.used(("projector", "instruct"))
    assert set(used.spec_for("adaptation")) == {"name", "projector", "instruct"}
    before = used.spec_for("adaptation")
    lines(tmp_path / "safety.jsonl", 5, "changed")
    assert data.used(("projector", "instruct")).spec_for("adaptation") == before
    lines(tmp_path / "instruct.jsonl", 5, "changed")
    assert data.used(("projector", "instruct")).spec_for("adaptation") != before
    moved = json.loads(json.dumps(settings_of(used)).replace("/projector.jsonl", "/./projector.jsonl"))
    assert registry.make("data", moved).spec_for("adaptation")["projector"] == before["projector"]


def test_real_data_with_the_microworlds_model_points_to_a_preset(grid: Grid) -> None:
    for option in ("llava_vlguard", "jsonl"):
        with pytest.raises(ConfigError, match=r"data=mixture says nothing to model=microworld.*\+experiment=NAME"):
            grid(f"data={option}")


class Real(Component):
    component_name = "real"


def loaded(name: str) -> Mixture:
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "data" / f"{name}.yaml"))
    made: Mixture = registry.make("data", settings)
    made.check()
    made.check_model(Real())
    made.check_purposes(PURPOSES)
    return made


def test_shipped_mixtures_name_the_commits_that_their_sets_state() -> None:
    data = loaded("llava_vlguard")
    assert {s.id for _, s in sources_of(data)} == {
        "liuhaotian/LLaVA-Pretrain", "liuhaotian/LLaVA-Instruct-150K", "ys-zong/VLGuard", "sqrti/SPA-VL",
        "PKU-Alignment/PKU-SafeRLHF",
    }  # fmt: skip
    for purpose in PURPOSES:
        for share in getattr(data, purpose).values():
            assert share.dataset.source == type(share.dataset).source
    assert all(isinstance(source, DataSource) for _, source in sources_of(loaded("jsonl")))
    assert {s.local for _, s in sources_of(placed(data, "/mirror"))} == {"/mirror"}


@pytest.mark.parametrize(
    "path", [p for p in (ROOT / "conf/data").glob("*.yaml") if "name: mixture" in p.read_text()], ids=lambda p: p.stem
)
def test_every_setting_of_a_mixture_says_where_it_comes_from(path: Path) -> None:
    for line in path.read_text().splitlines():
        if re.match(r"\s+\w+: *[^#\s]|most_broken", line):
            assert re.search(r"# (ours|paper|source)", line), line
