"""results.csv is what notebooks and checks read: its columns and its numbers are a contract."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.sweeps import labels, share, sweep
from vlsafe.errors import CheckError
from vlsafe.eval.metrics import wilson
from vlsafe.report.results import CellResult, conditions, score, write_csv

CONTRACT = (
    "sweep,cell,role,model,adaptation,safety_tune,order,merge,seed,step,axis,benchmark,metric,value,n,ci_low,ci_high,judge,"
    "judge_version,status,key"
)


def lines(results: list[CellResult], folder: Path) -> list[dict[str, str]]:
    write_csv(score(results), folder / "results.csv")
    with (folder / "results.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_columns_are_the_contracts_then_one_for_each_other_swept_setting(tmp_path: Path) -> None:
    results = sweep(tmp_path, swept={"merge.density": [0.2, 0.5], "eval.limit": [100]})
    write_csv(score(results), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == CONTRACT + ",eval.limit,merge.density"
    write_csv([], tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text() == CONTRACT + "\n"


def test_a_row_for_each_cell_role_benchmark_and_metric(tmp_path: Path) -> None:
    results = sweep(tmp_path)
    rows = lines(results, tmp_path)
    names = [(r["cell"], r["role"], r["benchmark"], r["metric"]) for r in rows]
    assert len(set(names)) == len(names) == len(results) + sum("safety" in r.axis for r in results)  # other_rate beside asr
    assert {r["metric"] for r in rows} == {"asr", "other_rate", "refusal_rate", "accuracy"}
    assert {r["step"] for r in rows} == {""}


def test_values_and_intervals_are_those_of_the_labels(tmp_path: Path) -> None:
    for result, row in ((r, w) for r in sweep(tmp_path) for w in lines([r], tmp_path)[:1]):
        k = share(result.key)
        low, high = wilson(k, 100)
        assert (float(row["value"]), row["n"], row["key"]) == (k / 100, "100", result.key)
        assert (float(row["ci_low"]), float(row["ci_high"])) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_reference_rows_repeat_with_the_same_key(tmp_path: Path) -> None:
    rows = [r for r in lines(sweep(tmp_path), tmp_path) if r["role"] == "base" and r["benchmark"] == "mw_direct"]
    assert len({r["cell"] for r in rows}) == 4
    assert len({r["key"] for r in rows}) == 1


def test_what_is_not_done_has_a_status_and_no_value(tmp_path: Path) -> None:
    results = sweep(tmp_path, status=lambda tune, merge, role: "failed" if role == "merged" else "done")
    failed = [r for r in lines(results, tmp_path) if r["status"] == "failed"]
    assert {r["role"] for r in failed} == {"merged"}
    assert {(r["value"], r["n"], r["ci_low"], r["ci_high"]) for r in failed} == {("", "", "", "")}
    assert {r["metric"] for r in failed} == {"asr", "refusal_rate", "accuracy"}


def test_unparsed_answers_get_a_row_of_their_own_and_nothing_to_count_no_value(tmp_path: Path) -> None:
    one = sweep(tmp_path)[0]
    some = replace(one, labels=labels(tmp_path / "some", "text_safety", counted=10, n=50, unparsed=10))
    rows = {r["metric"]: r for r in lines([some], tmp_path)}
    assert (rows["asr"]["value"], rows["asr"]["n"], rows["unparsed_rate"]["value"]) == ("0.25", "40", "0.2")
    none = replace(one, labels=labels(tmp_path / "none", "text_safety", counted=0, n=0))
    assert [(r["metric"], r["value"], r["n"]) for r in lines([none], tmp_path)] == [("asr", "", "0"), ("other_rate", "", "0")]


def test_checkpoints_carry_their_step(tmp_path: Path) -> None:
    (row, _) = lines([replace(sweep(tmp_path)[0], step=200)], tmp_path)
    assert row["step"] == "200"


def test_values_that_hold_commas_and_quotes_survive(tmp_path: Path) -> None:
    results = sweep(tmp_path, swept={"merge.weights": [[0.5, 0.25]], "note": ['a "b", c']})
    row = lines(results, tmp_path)[0]
    assert (row["merge.weights"], row["note"]) == ("[0.5, 0.25]", 'a "b", c')


def test_conditions_are_read_off_the_manifest_of_the_answers() -> None:
    decoding = {"engine": "hf", "greedy": True, "max_new_tokens": 32, "system_prompt": None}
    assert conditions({"template_hash": "ab12", "decoding": decoding, "text_image": "no_image"}) == {
        "template": "ab12",
        "decoding": "greedy, 32 new tokens",
        "text prompts": "no_image",
    }
    assert conditions({"pad_to_square": True}) == {"pictures": "padded to a square"}
    assert conditions({"pad_to_square": False}) == conditions({}) == {}


def test_a_label_that_is_none_is_an_error(tmp_path: Path) -> None:
    folder = labels(tmp_path / "bad", "text_safety", counted=1, n=2)
    (folder / "labels.jsonl").write_text('{"id": "0", "label": "safe"}\n')
    with pytest.raises(CheckError, match="'safe' is no label"):
        score([replace(sweep(tmp_path)[0], labels=folder)])
