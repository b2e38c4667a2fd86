"""A checkpoint counts only once every rank has written what is its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

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
