"""Every shipped preset runs from end to end on tiny stand-ins, in one go, and says everywhere that it did."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlsafe.presets.page import for_real_models, presets
from vlsafe.stand_in.notice import NOTICE

CONF = ROOT / "conf"
PRESETS = presets(CONF)
REAL = [preset for preset in PRESETS if for_real_models(CONF, preset)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all presets, run one after the other by one process on one store."""
    folder = tmp_path_factory.mktemp("presets") / "outputs"
    done = subprocess.run(
        [sys.executable, "-m", "tests.presets.run_all", str(folder), *PRESETS],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    ends = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) == 2}
    assert {preset: ends.get(preset) for preset in PRESETS} == dict.fromkeys(PRESETS, "0"), (
        done.stdout[-5000:] + done.stderr[-3000:]
    )
    return folder


def sweep(outputs: Path, preset: str) -> Path:
    (folder,) = (
        f for f in (outputs / "sweeps").iterdir() if f"experiment-{preset}" in f.name or f.name == f"stand_in.{preset}"
    )
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_ends_with_results_and_a_report_that_say_what_they_are_of(outputs: Path, preset: str) -> None:
    folder = sweep(outputs, preset)
    assert folder.name.startswith("stand_in.")
    found = rows(folder)
    assert found
    assert {row["status"] for row in found} == {"done"}
    assert all(row["model"].endswith(".stand_in") and row["sweep"].startswith("stand_in.") for row in found)
    assert NOTICE in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("preset", REAL)
def test_a_preset_for_real_models_is_judged_on_every_axis(outputs: Path, preset: str) -> None:
    axes = {row["axis"] for row in rows(sweep(outputs, preset))}
    assert axes == {"text_safety", "multimodal_safety", "over_refusal", "helpfulness"}


def test_the_command_of_the_readme_merges_both_ways(outputs: Path) -> None:
    merged = {(r["safety_tune"], r["merge"]) for r in rows(sweep(outputs, "paper_llama2")) if r["role"] == "merged"}
    assert merged == {("sft", "linear"), ("sft", "ties"), ("dpo", "linear"), ("dpo", "ties")}
    orders = {(r["safety_tune"], r["order"]) for r in rows(sweep(outputs, "paper_tulu2"))}
    assert {("dpo", "after"), ("dpo", "before"), ("sft", "joint")} <= orders


def test_nothing_of_it_is_sent_to_a_tracker(outputs: Path) -> None:
    assert not list(outputs.rglob("wandb")) and not list(outputs.rglob("trackio"))
