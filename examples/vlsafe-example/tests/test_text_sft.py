"""The tuning: it learns from text alone, also where the model sees, and can't be part of an adaptation."""

import json
from pathlib import Path

import pytest
from conftest import FEW
from vlsafe_example.text_sft import TextSupervised

from vlsafe.data.components import MicroworldData
from vlsafe.errors import ConfigError
from vlsafe.stage import Execution, StageContext


def test_no_row_has_a_picture(pruned: Path, tmp_path: Path) -> None:
    ctx = StageContext(tmp_path / "out", tmp_path / "work", {"model": pruned}, Execution(device="cpu"))
    TextSupervised(optimization=FEW, helpful=0.5).run(MicroworldData(), ctx, text_only=False)
    (phase,) = ctx.facts["phases"].values()
    assert phase["rows_with_pictures"] == 0
    assert sum(phase["rows_by_source"].values()) == FEW.rows
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]


def test_jointly_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"safety_tune\.order=joint: text_sft is a stage of its own"):
        TextSupervised(optimization=FEW, helpful=0.5, order="joint").check()
