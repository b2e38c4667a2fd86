"""Two ranks share what a filter asks of a guard, and keep the rows that one process keeps; stopped and killed too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import filter_rows
import pytest

from vlsafe.ranks import ALONE
from vlsafe.stand_in.benchmarks import write_guard

pytestmark = pytest.mark.dist
RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def two_ranks(folder: Path, *stop: str) -> list[dict[str, Any]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [*RANKS, filter_rows.__file__, str(folder), *stop], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_share_the_rows_and_keep_the_same_ones(tmp_path: Path) -> None:
    for name in ("alone", "two"):
        write_guard(tmp_path / name / "guard")
    alone = filter_rows.sift(tmp_path / "alone", ALONE)
    stopped = two_ranks(tmp_path / "two", "2")
    assert stopped == [{"stopped": True, "asked": 8}] * 2  # two rounds of four rows each
    ranks = two_ranks(tmp_path / "two")
    assert [{**told, "asked": 0} for told in ranks] == [{**alone, "asked": 0}] * 2
    assert sum(told["asked"] for told in ranks) == alone["asked"] - 16
    assert min(told["asked"] for told in ranks) > 0
    lines = (tmp_path / "two" / "work" / "verdicts.jsonl").read_text().splitlines()
    assert len({json.loads(line)["of"] for line in lines}) == len(lines) == alone["asked"]
