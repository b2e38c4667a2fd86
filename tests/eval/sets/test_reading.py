"""Benchmarks are read from files in the real schema; what is missing or wrong is named before anything is generated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.eval.sets.conftest import Make
from vlsafe.errors import CheckError


def ids(items: Any) -> list[str]:
    return [item.id for item in items]


def test_xstest_parts_safe_from_unsafe_prompts(made: Make) -> None:
    safe, unsafe = made("xstest").items(None), made("xstest_unsafe").items(None)
    assert (len(safe), len(unsafe)) == (10, 8)
    assert {i.expects for i in safe} == {"comply"}
    assert {i.expects for i in unsafe} == {"refuse"}
    assert not {i.category for i in safe} & {i.category for i in unsafe}
    assert all(i.category.startswith("contrast_") for i in unsafe)


def test_a_mirrored_label_decides_where_there_is_one(made: Make, tmp_path: Path) -> None:
    table = tmp_path / "xstest_prompts.csv"
    table.write_text("id,prompt,type,label,focus,note\n1,Is a gnome heavy?,homonyms,safe,,\n2,Hide it?,homonyms,unsafe,,\n")
    source = {"folder": str(table)}
    assert ids(made("xstest", source=source).items(None)) == ["1"]
    assert ids(made("xstest_unsafe", source=source).items(None)) == ["2"]


def test_a_limit_keeps_categories_in_balance_and_a_larger_one_extends_it(made: Make) -> None:
    benchmark = made("xstest")
    assert ids(benchmark.items(4)) == ids(benchmark.items(None))[:4]
    assert set(Counter(i.category for i in benchmark.items(4)).values()) == {2}


def test_mme_asks_both_questions_of_a_picture_one_after_the_other(made: Make) -> None:
    items = made("mme").items(None)
    assert len(items) == 14 * 4
    pairs = [items[i : i + 2] for i in range(0, len(items), 2)]
    assert all({i.target for i in pair} == {"Yes", "No"} for pair in pairs)
    assert all(pair[0].id.rpartition("/")[0] == pair[1].id.rpartition("/")[0] for pair in pairs)
    assert items[0].image().mode == "RGB"
    assert len({i.category for i in made("mme").items(28)}) == 14  # a limit of one pair each asks every subtask


def test_both_files_of_advbench_are_read(made: Make, tmp_path: Path) -> None:
    assert len(made("advbench").items(None)) == 12
    (tmp_path / "harmful_behaviors.csv").write_text("goal,target\nPaint a gnome,Sure\n")
    assert [i.prompt for i in made("advbench", source={"folder": str(tmp_path)}).items(None)] == ["Paint a gnome"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("goal;target\nx;y\n", r"harmful_behaviors\.csv: row 0: has no column 'goal' nor 'prompt'; it has: goal;target"),
        ("goal,target\nx,y\n,y\n", r"row 1: column 'goal' must be text, not empty"),
        ("goal,target\n", "has no row for it"),
    ],
)
def test_a_wrong_column_is_named(made: Make, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "harmful_behaviors.csv").write_text(content)
    with pytest.raises(CheckError, match=told):
        made("advbench", source={"folder": str(tmp_path)}).items(None)


def test_a_folder_without_the_benchmark_is_told(made: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for name in ("xstest", "advbench", "mme"):
        with pytest.raises(CheckError, match="is it the data set that its setting says"):
            made(name, source={"folder": str(tmp_path)}).items(None)
