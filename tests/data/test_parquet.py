"""Parquet in a shuffled order: the same rows as in order, and no group decoded for each of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlsafe.data.parquet import KEPT_GROUPS, ParquetTable, unpacked

GROUPS, SIZE = 30, 5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def write(path: Path, name: str, groups: int = GROUPS) -> Path:
    rows = [
        {
            "image": {"bytes": f"{name} {i}".encode(), "path": f"{i}.jpg"} if i % 3 else None,
            "messages": [{"role": "user", "content": f"{name} {i} {k}"} for k in range(i % 4)],
            "number": i,
        }
        for i in range(groups * SIZE)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=SIZE, compression="none")
    return path


def shuffled(table: ParquetTable) -> list[int]:
    order = list(range(len(table)))
    random.Random(0).shuffle(order)
    return order


def in_order(paths: list[Path]) -> list[Any]:
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_a_shuffled_order_gives_the_same_rows_and_decodes_few_groups(tmp_path: Path, cache: Path) -> None:
    paths = [write(tmp_path / "a.parquet", "a"), write(tmp_path / "b.parquet", "b", 1), write(tmp_path / "c.parquet", "c")]
    table = ParquetTable(paths)
    expected = in_order(paths)
    for _ in range(2):
        for i in shuffled(table):
            assert table[i] == expected[i]
    assert table.decoded <= 2 * GROUPS + 1 + 1 + len(paths)  # as many as there are, one more, and each file's first
    assert table.where(GROUPS * SIZE) == f"{paths[1]}: row 0" and table.file(len(table) - 1) == paths[2]
    assert cache.is_dir()


def test_who_reads_in_order_unpacks_nothing(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.parquet", "a")
    table = ParquetTable([path])
    assert list(table) == in_order([path])
    assert table.decoded == GROUPS and len(table._kept) == KEPT_GROUPS
    assert not cache.exists()


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "a")
    before = path.stat()
    assert unpacked(path)[1].to_pylist()[0]["image"]["bytes"] == b"a 1"
    write(path, "b")
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert unpacked(path)[1].to_pylist()[0]["image"]["bytes"] == b"b 1"


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.parquet", "a")
    program = """
import datasets, os, sys
from pathlib import Path
from vlsafe.data.parquet import unpacked
datasets.arrow_writer.ArrowWriter.finalize = lambda self, *args, **kwargs: os.kill(os.getpid(), 9)
unpacked(Path(sys.argv[1]))
"""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    killed = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert list(cache.rglob("*.arrow"))  # it had begun
    assert [row for i in range(GROUPS * SIZE) for row in unpacked(path)[i].to_pylist()] == in_order([path])


def test_without_a_cache_rows_are_read_as_they_are(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("no folder")
    path = write(tmp_path / "a.parquet", "a")
    table, expected = ParquetTable([path]), in_order([path])
    for i in shuffled(table) * 2:
        assert table[i] == expected[i]
    assert [record.getMessage() for record in caplog.records if "HF_DATASETS_CACHE" in record.getMessage()]
