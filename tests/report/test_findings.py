"""docs/findings.md is made of two sweeps' records alone: each verdict, each figure, and what is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report.study import ADAPTED, BASE, MERGED, TUNED, cell, changed, over
from vlsafe.errors import ConfigError
from vlsafe.plan import make_plan
from vlsafe.report.findings.figures import draw
from vlsafe.report.findings.page import render
from vlsafe.report.findings.study import Ran, Study, judge, read
from vlsafe.report.results import Scored
from vlsafe.sweep import open_sweep

Grid = Callable[..., Any]


def ran(grid: Grid, folder: Path, name: str, scored: list[Scored], done: bool, *overrides: str) -> Ran:
    sweep = open_sweep(folder / name, name, grid("+experiment=seeds", *overrides), ["seed"])
    plan = make_plan(sweep.cells)
    return Ran(sweep, plan, dict.fromkeys(plan.stages, "exists" if done else "failed"), scored)


@pytest.fixture
def study(grid: Grid, tmp_path: Path) -> Study:
    def main(seed: int) -> list[Scored]:
        return [
            *cell(seed, base=BASE, adapted=ADAPTED),
            *cell(seed, tune="sft", base=BASE, adapted=ADAPTED, tuned=TUNED),
            *cell(seed, tune="sft", order="joint", base=BASE, tuned=changed(TUNED, over_refusal=0.9)),
            *cell(seed, tune="sft", merge="linear", base=BASE, adapted=ADAPTED, tuned=TUNED, merged=MERGED),
            *cell(seed, tune="sft", merge="ties", base=BASE, adapted=ADAPTED, tuned=TUNED, merged=ADAPTED),
        ]

    def control(seed: int) -> list[Scored]:
        return cell(seed, base=BASE, adapted=changed(ADAPTED, text_safety=0.2))

    return judge(
        ran(grid, tmp_path, "findings", over(range(3), main), True),
        ran(grid, tmp_path, "findings_control", over(range(3), control), True, "data=replay"),
    )


def test_every_claim_stands_with_its_verdict(study: Study) -> None:
    page = render(study, {})
    summary = page[page.index("## In short") : page.index("## What was run")]
    assert [c.verdict for c in (*study.claims, *study.control_claims)] == re.findall(r"\*\*\S+ ([a-z ]+)\*\*", summary)
    assert {c.finding for c in study.claims} == {1, 2, 4, 5}
    verdicts = {c.name: c.verdict for c in (*study.claims, *study.control_claims)}
    assert verdicts["finding_1/llava"] == verdicts["finding_5/llava/sft"] == verdicts["control/llava"] == "supported"
    for heading in ("Finding 1", "Finding 2", "Finding 4", "Finding 5", "The control", "Limits"):
        assert f"## {heading}" in page
    assert "+experiment=findings`" in page and "+experiment=findings_control`" in page
    assert "data replay (main: microworld)" in page


def test_figures_are_files_beside_the_page_and_the_same_each_time(study: Study, tmp_path: Path) -> None:
    first, again = draw(study, tmp_path / "one"), draw(study, tmp_path / "two")
    assert set(first) == {"finding_1", "finding_2", "finding_4", "finding_5", "control"}
    page = render(study, first)
    for name, path in first.items():
        assert f"(figures/{path.name})" in page
        assert path.read_bytes() == again[name].read_bytes()
        assert path.read_text().lstrip().startswith("<?xml")


def test_what_is_not_there_is_said(grid: Grid, tmp_path: Path) -> None:
    lost = over(range(2), lambda seed: cell(seed, base=BASE, adapted=ADAPTED, status={"adapted": "failed"}))
    nothing = judge(
        ran(grid, tmp_path, "findings", lost, False), ran(grid, tmp_path, "findings_control", [], False, "data=replay")
    )
    page = render(nothing, draw(nothing, tmp_path / "figures"))
    assert "not there (failed or not run)" in page
    assert {c.verdict for c in nothing.claims} == {"inconclusive"}
    assert page.count("*Not judged: the sweeps hold no such models.*") >= 3


def test_a_sweep_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no sweep 'findings'"):
        read("findings", tmp_path, tmp_path / "store")
