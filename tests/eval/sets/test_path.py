"""From files to figures: a small LLaVA answers real benchmarks' stand-ins, a judge labels, and the results hold the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.eval.sets.conftest import Make
from vlsafe.eval import generate, judge_stage
from vlsafe.eval.base import Label
from vlsafe.eval.engines import HfEngine
from vlsafe.eval.judges import Keyword
from vlsafe.eval.rows import read_rows, write_rows
from vlsafe.eval.sets.mme import COGNITION, MME, PERCEPTION
from vlsafe.report.results import CellResult, Scored, rows, score
from vlsafe.stage import StageContext

CHOICES = {"model": "m", "adaptation": "a", "safety_tune": "t", "order": "after", "merge": "none", "seed": 0}


def scored(benchmark: Any, labels: Path) -> Scored:
    result = CellResult("s", "c", "tuned", True, CHOICES, "done", benchmark.axis, benchmark.title, "keyword", 2, "k", labels)
    return score([result])[0]


NAMES = yaml.safe_load((ROOT / "conf" / "eval" / "first.yaml").read_text())["benchmarks"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_asked_judged_and_scored(made: Make, model: Path, tmp_path: Path, name: str) -> None:
    benchmark = made(name)
    out, labels = tmp_path / "responses", tmp_path / "labels"
    generate.run(benchmark, HfEngine(max_new_tokens=4), 8, StageContext(out, tmp_path / "work", {"model": model}))
    answered = read_rows(out / "responses.jsonl")
    n = len(answered)
    assert n == min(8, len(benchmark.items(None))) >= 4
    assert all(bool(row["image"]) == benchmark.needs_image for row in answered)
    judge_stage.run(Keyword(), StageContext(labels, tmp_path / "work", {"responses": out}))
    found = scored(benchmark, labels)
    assert found.headline.n == n
    assert found.headline.name == {
        "over_refusal": "refusal_rate",
        "helpfulness": "accuracy",
    }.get(benchmark.axis, "asr")


def test_mmes_own_metrics_reach_the_results(made: Make, tmp_path: Path) -> None:
    """All right but both questions of one picture of `count` and one question of one of `OCR`."""
    items = made("mme").items(None)
    wrong = {"count/0000.png/1", "count/0000.png/2", "OCR/0001.png/1"}
    assert wrong < {item.id for item in items}
    write_rows(tmp_path / "labels.jsonl", [{"id": i.id, "label": "incorrect" if i.id in wrong else "correct"} for i in items])
    found = scored(made("mme"), tmp_path)
    values = {line["metric"]: (line["value"], line["n"]) for line in rows([found])}
    assert values["accuracy"] == (53 / 56, 56)
    assert values["mme_acc_plus"] == (26 / 28, 28)
    # 200 for each subtask, but 100 for `count` (one of two pictures) and 125 for `OCR` (50 + 200 over two).
    assert values["mme_perception"] == (8 * 200 + 100 + 125, 20)
    assert values["mme_cognition"] == (800, 8)
    perception = found.metric("mme_perception")
    assert perception is not None
    assert perception.low is not None
    assert perception.low < 1825 < 2000 == perception.high


def test_a_sum_over_subtasks_that_were_not_all_asked_is_not_given() -> None:
    def labels(categories: tuple[str, ...]) -> dict[str, Label]:
        return {f"{c}/1.png/{k}": "correct" for c in categories for k in (1, 2)}

    assert [m.name for m in MME.own_metrics(labels(PERCEPTION))] == ["mme_acc_plus", "mme_perception"]
    assert [m.name for m in MME.own_metrics(labels((*PERCEPTION[1:], *COGNITION)))] == ["mme_acc_plus", "mme_cognition"]


def test_a_picture_with_one_of_its_questions_left_out_counts_in_no_pair() -> None:
    found = MME.own_metrics({"count/1.png/1": "correct", "count/1.png/2": "correct", "count/2.png/1": "correct"})
    assert [(m.name, m.value, m.n) for m in found] == [("mme_acc_plus", 1.0, 1)]
