"""Rows of files, one at a time: the same rows whatever the file is, and each complaint names file, row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlsafe.data import tables
from vlsafe.data.tables import column, open_table
from vlsafe.errors import CheckError

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), TEXT | st.lists(TEXT, max_size=3), max_size=3), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(0, 10**9))
def test_json_lists_and_lines_are_read_as_json_reads_them(
    tmp_path: Path, rows: list[Any], indent: int | None, ascii_only: bool, number: int
) -> None:
    whole, lines = tmp_path / f"{number}.json", tmp_path / f"{number}.jsonl"
    whole.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    tables._rows.cache_clear()
    assert list(open_table([whole])) == rows
    lines.write_bytes("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode() or b"\n")
    assert list(open_table([lines])) == rows


def test_parquet_is_read_by_row_group_and_files_follow_one_another(tmp_path: Path) -> None:
    rows = [{"a": f"{i}", "image": {"bytes": bytes([i]), "path": None}} for i in range(23)]
    for part, some in enumerate((rows[:9], rows[9:])):
        pq.write_table(pyarrow.Table.from_pylist(some), tmp_path / f"{part}.parquet", row_group_size=4)
    table = open_table(sorted(tmp_path.glob("*.parquet")))
    assert list(table) == rows
    assert [table[i] for i in (22, 0, 10, -1)] == [rows[i] for i in (22, 0, 10, -1)]
    assert table.where(8) == f"{tmp_path / '0.parquet'}: row 8"
    assert table.where(14) == f"{tmp_path / '1.parquet'}: row 5"
    assert table.file(14) == tmp_path / "1.parquet"
    with pytest.raises(IndexError):
        table[23]


def test_files_of_json_lines_follow_one_another(tmp_path: Path) -> None:
    for part in range(3):
        (tmp_path / f"{part}.jsonl").write_text("".join(f'{{"a": {part * 2 + k}}}\n' for k in range(2)))
    table = open_table(sorted(tmp_path.glob("*.jsonl")))
    assert [row["a"] for row in table] == list(range(6))
    assert table.where(3) == f"{tmp_path / '1.jsonl'}: row 1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{}, {]", "a.json: row 1: is no JSON"),
        ("a.json", '[{"a": 1}, {"a": 2}', "a.json: row 1: the list has no ',' or ']' after it; the file was cut off?"),
        ("a.json", '[{"a": 1}, 3]', "a.json: row 1: must be an object with columns, not int"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl: row 1: is no JSON"),
        ("a.jsonl", "", "a.jsonl: is empty"),
        ("a.parquet", "PAR1 not really", "a.parquet: is no Parquet that can be read"),
        ("a.csv", "a,b\n", "a.csv: its rows can't be read; give .jsonl, .json or .parquet"),
    ],
)
def test_a_file_that_cant_be_read_says_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckError) as error:
        list(open_table([tmp_path / name]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_is_missing_or_of_another_type_says_where(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": 3, "c": true}\n')
    table = open_table([tmp_path / "a.jsonl"])
    assert column(table, 0, table[0], "a") == "x"
    for name, kind, message in (
        ("d", str, "a.jsonl: row 0: has no column 'd'; it has: a, b, c"),
        ("b", str, "a.jsonl: row 0: column 'b' must be text, not int"),
        ("c", int, "a.jsonl: row 0: column 'c' must be a whole number, not bool"),
        ("a", (dict, bytes), "a.jsonl: row 0: column 'a' must be an object or bytes, not str"),
    ):
        with pytest.raises(CheckError) as error:
            column(table, 0, table[0], name, kind)  # type: ignore[arg-type]
        assert message in str(error.value)
