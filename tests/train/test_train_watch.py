"""At the end of steps: a checkpoint counts once every rank has written, and no rank's number is hidden by another's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlsafe.errors import CheckError
from vlsafe.files import read_json
from vlsafe.ranks import Ranks
from vlsafe.stage import StageContext
from vlsafe.train.checkpoint import MARKER
from vlsafe.train.watch import Watch


@dataclass(frozen=True)
class BesideASlowOne(Ranks):
    """The other rank's piece is there once the barrier was passed."""

    piece: Path = field(default=Path())

    def barrier(self) -> None:
        self.piece.write_text("weights")


def test_a_checkpoint_is_sealed_when_all_ranks_have_written(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (tmp_path / "log.jsonl").touch()
    ranks = BesideASlowOne(world=2, piece=checkpoint / "rank1")
    ctx = StageContext(tmp_path / "out", tmp_path, ranks=ranks)
    watch = Watch("phase", 9, tmp_path, ctx, [], lambda step, note: None, lambda: 1.0, layout="zero3 over 2")
    watch.on_save(None, SimpleNamespace(global_step=3), None)
    assert "rank1" in read_json(checkpoint / MARKER)["sha256"]


@dataclass(frozen=True)
class Beside(Ranks):
    """What the other rank has is what this one gives, changed by `other`."""

    other: Callable[[Any], Any] = field(default=lambda value: value)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other(value)]


def told(folder: Path, other: Callable[[Any], Any], **mine: Any) -> dict[str, Any]:
    """The line of the log that one step leaves, with another rank beside."""
    given = {"loss": 2.0, "norm": 1.0, "more": {}} | mine
    watch = Watch("phase", 9, folder, StageContext(folder / "out", folder, ranks=Beside(world=2, other=other)), [],
                  lambda step, note: None, lambda: 1.0)  # fmt: skip
    watch.report(1, torch.tensor(given["loss"]), torch.tensor(given["norm"]), 0.1, 8, given["more"])
    watch.flush(1.0)
    (line,) = watch.lines
    return line


def changed(of: str, to: float) -> Callable[[Any], Any]:
    """The other rank's values: `of` is `to` there."""

    def change(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [{**entry, **({of: to} if of in entry else {})} for entry in value]
        return [to] if of == "norm" and value == [1.0] else value

    return change


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize(("of", "name"), [("loss", "loss"), ("norm", "gradient norm")])
def test_what_is_no_number_on_any_rank_stops_all_of_them(tmp_path: Path, of: str, name: str, wrong: float) -> None:
    with pytest.raises(CheckError, match=f"phase: the {name} of step 1 is {wrong}: lower learning_rate"):
        told(tmp_path, changed(of, wrong))
    assert not (tmp_path / "log.jsonl").exists(), "such a step leaves nothing"


def test_deepspeeds_sign_for_a_norm_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"the gradient norm of step 1 is -1\.0"):
        told(tmp_path, lambda value: value, norm=-1.0)


def test_a_rank_without_a_metric_is_left_out_where_that_may_be(tmp_path: Path) -> None:
    metrics = {"reward_margin": 0.5, "kl": 0.25}
    line = told(tmp_path, changed("reward_margin", float("nan")), more=metrics)
    assert (line["loss"], line["reward_margin"], line["kl"]) == (2.0, 0.5, 0.25)
    line = told(tmp_path, changed("kl", float("nan")), more=metrics)
    assert line["reward_margin"] == 0.5
    assert math.isnan(line["kl"]), "nobody may lack it, so nothing is made up"
