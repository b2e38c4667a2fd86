"""Tags are read from the line that set a value, wherever in the chain of files it is; the page of presets is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlsafe.presets.origins import TAGGED_GROUPS, comments, compose
from vlsafe.presets.page import described, for_real_models, presets, render, wanted

CONF = ROOT / "conf"
REAL = [name for name in presets(CONF) if for_real_models(CONF, name)]


def test_a_comment_holds_for_what_is_below_and_a_nearer_one_counts_more() -> None:
    text = "a: # ours\n  b: 1\n  c: {d: 2, e: [3, 4]}  # paper\nf: '#'  # source: X, y # z\ng: 5\n"
    assert dict(comments(text)) == {"a.b": "ours", "a.c.d": "paper", "a.c.e": "paper", "f": "source: X, y # z", "g": ""}


def test_the_last_file_that_sets_a_value_is_the_one_that_is_named(tmp_path: Path) -> None:
    composed = compose(CONF, ["recipes=real", "adaptation=llava_lora"])
    found = {s.path: s for s in composed.settings}
    assert found["adaptation.instruct.learning_rate"].file == "adaptation/llava15_lora"
    assert found["adaptation.instruct.batch_size"].file == "adaptation/llava15"
    assert found["adaptation.lora.rank"].said == "source: LLaVA-1.5"
    assert found["adaptation.lora.rank"].value == 128


def test_the_presets_of_the_issue_are_there() -> None:
    assert {"paper_llama2", "paper_tulu2", "llava15_released", "qwen25_vl_released", "smollm2_laptop"} == set(REAL)


@pytest.mark.parametrize("preset", REAL)
def test_every_setting_of_a_preset_says_where_it_comes_from(preset: str) -> None:
    composed = compose(CONF, [f"+experiment={preset}"])
    for setting in composed.settings:
        group = setting.path.partition(".")[0]
        if described(composed, group) and wanted(setting):
            assert setting.tag, f"{preset}: {setting.path}={setting.value} in {setting.file or 'no file'}: '{setting.said}'"
    for choice in composed.choices.values():
        assert choice.tag, f"{preset}: {choice}"
    chosen = {group for group in TAGGED_GROUPS if composed.options[group] != compose(CONF, []).options[group]}
    assert chosen <= set(composed.choices)


@pytest.mark.parametrize("preset", REAL)
def test_what_is_not_known_of_the_study_is_said(preset: str) -> None:
    assert compose(CONF, [f"+experiment={preset}"]).unknown


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "presets.md").read_text("utf-8")
    assert page == render(CONF), "run: python -m vlsafe.presets --write docs/presets.md"
