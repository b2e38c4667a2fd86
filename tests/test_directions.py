"""The demo's own models, at full size: adaptation raises ASR, SFT lowers it again and costs over-refusal. Takes minutes."""

from __future__ import annotations

import csv

import pytest

from tests.conftest import Launch

Rates = dict[tuple[str, str], tuple[float, float, float]]


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Rates:
    """(role, benchmark) → value and interval of its headline metric, of the default recipe with its default seeds."""
    launch = Launch(tmp_path_factory.mktemp("directions") / "outputs")
    done = launch.run(
        "train.py", "safety_tune=sft", "merge=none", f"outputs={launch.outputs}", "sweep=directions", "eval.limit=150"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (launch.outputs / "sweeps" / "directions" / "results.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["metric"] in ("asr", "refusal_rate", "accuracy")]
    return {(row["role"], row["benchmark"]): (float(row["value"]), float(row["ci_low"]), float(row["ci_high"])) for row in rows}


def above(rates: Rates, benchmark: str, higher: str, lower: str) -> bool:
    """Whether one role's rate is above another's with disjoint 95 % intervals."""
    return rates[higher, benchmark][1] > rates[lower, benchmark][2]


def test_adaptation_on_harmless_data_raises_asr(rates: Rates) -> None:
    assert above(rates, "mw_direct", "adapted", "base")
    assert above(rates, "mw_wrapped", "adapted", "base")


@pytest.mark.parametrize("benchmark", ["mw_direct", "mw_wrapped", "mw_cross_modal"])
def test_sft_lowers_asr(rates: Rates, benchmark: str) -> None:
    assert above(rates, benchmark, "adapted", "tuned")


@pytest.mark.parametrize("benchmark", ["mw_borderline_text", "mw_borderline_picture"])
def test_sft_raises_over_refusal(rates: Rates, benchmark: str) -> None:
    assert above(rates, benchmark, "tuned", "adapted")


def test_the_adapted_model_reads_pictures_and_keeps_its_text(rates: Rates) -> None:
    assert rates["adapted", "mw_helpful_picture"][1] > 0.85
    assert rates["adapted", "mw_helpful_text"][1] > 0.9


def test_an_untrained_projector_is_not_scored_on_pictures(rates: Rates) -> None:
    assert {benchmark for role, benchmark in rates if role == "base"} == {
        "mw_direct", "mw_wrapped", "mw_borderline_text", "mw_helpful_text",
    }  # fmt: skip
