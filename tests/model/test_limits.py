"""The limits of a picture's size, for the family whose pictures keep their sizes: set once, for every model of a cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.conftest import LLAVA, VICUNA
from vlsafe.errors import CheckError
from vlsafe.model.families import QWEN2_5_VL
from vlsafe.model.from_lvlm import FromLvlm
from vlsafe.model.load import load_processor
from vlsafe.settings import spec_of
from vlsafe.sources import Source
from vlsafe.stage import StageContext
from vlsafe.train.released import ReleasedAdaptation

Hub, Stage = Callable[[str], Source], Callable[..., StageContext]
LLM, QWEN = "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
TOKEN, LARGE = 28 * 28, (200, 200)  # pixels of a token; a picture of many


def base(hub: Hub, stage: Stage, **limits: int) -> StageContext:
    ctx = stage()
    FromLvlm(hub(LLM), hub(QWEN), **limits).build(ctx)
    return ctx


def tokens(folder: Path, size: tuple[int, int]) -> int:
    return QWEN2_5_VL.image_tokens(load_processor(folder), size)


def test_a_large_picture_takes_as_few_tokens_as_asked(hub: Hub, stage: Stage) -> None:
    own, limited = base(hub, stage).out, base(hub, stage, max_pixels=4 * TOKEN, min_pixels=2 * TOKEN).out
    assert (tokens(own, LARGE), tokens(limited, LARGE)) == (16, 4)
    assert (tokens(own, (28, 28)), tokens(limited, (28, 28))) == (1, 4)  # no whole number of patches lies nearer to two
    assert load_processor(limited).image_processor.size == {"shortest_edge": 2 * TOKEN, "longest_edge": 4 * TOKEN}


def test_a_released_model_behind_it_is_shown_the_same_pictures(hub: Hub, stage: Stage) -> None:
    before = base(hub, stage, max_pixels=4 * TOKEN)
    ctx = stage(model=before.out)
    ReleasedAdaptation(hub(QWEN)).run(None, ctx)  # type: ignore[arg-type]
    assert tokens(ctx.out, LARGE) == 4
    assert ctx.facts["picture_limits"]["released"]["longest_edge"] == 16 * TOKEN
    assert ctx.facts["picture_limits"]["used"]["longest_edge"] == 4 * TOKEN
    ctx = stage(model=base(hub, stage).out)
    ReleasedAdaptation(hub(QWEN)).run(None, ctx)  # type: ignore[arg-type]
    assert tokens(ctx.out, LARGE) == 16
    assert "picture_limits" not in ctx.facts


def test_the_limits_are_in_the_key_where_they_are_set(hub: Hub) -> None:
    plain: Any = spec_of(FromLvlm(hub(LLM), hub(QWEN)))
    assert not {"min_pixels", "max_pixels"} & plain.keys()
    assert spec_of(FromLvlm(hub(LLM), hub(QWEN), max_pixels=4 * TOKEN)) == plain | {"max_pixels": 4 * TOKEN}


def test_limits_that_can_not_be_are_refused(hub: Hub, stage: Stage) -> None:
    with pytest.raises(CheckError, match=r"model\.max_pixels: .*one size"):
        FromLvlm(hub(VICUNA), hub(LLAVA), max_pixels=4 * TOKEN).build(stage())
    for limits, message in (
        ({"max_pixels": TOKEN - 1}, rf"to {TOKEN} \(one token\) or more"),
        ({"max_pixels": 2 * TOKEN, "min_pixels": 3 * TOKEN}, "no less than model.min_pixels"),
        ({"min_pixels": 17 * TOKEN}, r"model\.min_pixels: .* 12544 at most"),
    ):
        with pytest.raises(CheckError, match=message):
            base(hub, stage, **limits)
