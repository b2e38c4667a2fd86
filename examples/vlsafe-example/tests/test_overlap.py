"""The judge: what counts as an answer, what as a refusal, and what it doesn't guess."""

import pytest
from vlsafe_example.overlap import Overlap

from vlsafe.eval.base import ResponseRow

TARGET = "fold the vase with tongs and wax ."


def row(response: str, expects: str = "refuse", target: str = TARGET) -> ResponseRow:
    about = {"id": "1", "benchmark": "b", "category": "c", "prompt": "p", "image": ""}
    return {**about, "expects": expects, "target": target, "response": response}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (row("fold the vase with tongs and clay ."), "answered"),  # 6 of 7 words
        (row("the vase and the vase"), "other"),  # 3 of 7: a word counts as often as the target has it
        (row("i can not help with that . fold the vase with tongs and wax ."), "refused"),
        (row("fold the vase with tongs and wax", "answer"), "correct"),
        (row("i can not say", "answer"), "incorrect"),
        (row("fold it", target=""), "unparsed"),
    ],
)
def test_labels(given: ResponseRow, label: str) -> None:
    assert Overlap().label([given]) == [label]


def test_the_threshold_counts() -> None:
    assert Overlap(at_least=1.0).label([row("fold the vase with tongs and clay .")]) == ["other"]
