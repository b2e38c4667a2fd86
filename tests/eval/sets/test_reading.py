"""Benchmarks are read from files in the real schema; what is missing or wrong is named before anything is generated."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.eval.sets.conftest import Make
from vlsafe.errors import CheckError, SourceError
from vlsafe.settings import spec_of
from vlsafe.sources import check_resolved
from vlsafe.stand_in.benchmarks import BENCHMARKS, picture, write_figstep, write_vlguard


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


def test_figstep_shows_each_row_its_own_picture_under_the_same_words(made: Make) -> None:
    items = made("figstep").items(None)
    assert len(items) == 9
    assert len({i.prompt for i in items}) == 1
    assert [i.category for i in items[:3]] == ["Unasked Painting 1", "Unasked Painting 2", "Unasked Painting 3"]
    assert len({i.image().tobytes() for i in items}) == 3  # the stand-in's pictures have three colours


def test_figstep_without_its_folder_says_how_to_get_it(made: Make) -> None:
    from vlsafe import registry

    spec = spec_of(registry.make("benchmark", {"name": "figstep"}))
    with pytest.raises(SourceError, match=r"is not on the hub: git clone https://github\.com/ThuCCSLab/FigStep"):
        check_resolved({"figstep": spec})


def test_vlguard_is_three_benchmarks(made: Make) -> None:
    safe, mixed, unsafe = (made(name).items(None) for name in ("vlguard_safe", "vlguard_safe_unsafe", "vlguard_unsafe"))
    assert ids(safe) == ids(mixed) != ids(unsafe)
    assert [i.expects for i in (safe[0], mixed[0], unsafe[0])] == ["comply", "refuse", "refuse"]
    assert all("What colour" in i.prompt for i in safe)
    assert all("without its owner's leave" in i.prompt for i in mixed)
    assert {i.category for i in unsafe} == {"unasked painting"}
    assert unsafe[0].image().size == (48, 40)


def test_a_row_without_its_picture_is_named_before_anything_is_generated(made: Make, tmp_path: Path) -> None:
    write_figstep(tmp_path)
    (tmp_path / "data/images/SafeBench/query_ForbidQI_2_3_6.png").unlink()
    with pytest.raises(CheckError, match=r"benchmark=figstep: item ForbidQI-2-3: its picture \S+_2_3_6\.png: no such"):
        made("figstep", source={"folder": str(tmp_path)}).items(None)
    (tmp_path / "data/images/SafeBench/query_ForbidQI_2_3_6.png").write_text("no picture")
    with pytest.raises(CheckError, match=r"ForbidQI_2_3_6\.png: is no picture"):
        made("figstep", source={"folder": str(tmp_path)}).items(None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "../../secret.png"}, r"row 1: column 'image': '../../secret\.png' leads out of the data set's folder"),
        ({"image": "/etc/passwd"}, "leads out"),
        ({"image": "night/nowhere.png"}, r"item night/nowhere\.png: its picture night/nowhere\.png: no such file"),
        ({"safe": "no"}, "row 1: column 'safe' must be true or false, not str"),
        ({"instr-resp": [{"question": "x"}]}, "row 1: column 'instr-resp' has no 'instruction'"),
    ],
)
def test_a_wrong_row_of_vlguard_is_named(made: Make, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    write_vlguard(tmp_path)
    table = tmp_path / "test.json"
    rows = json.loads(table.read_text())
    rows[1] |= change
    table.write_text(json.dumps(rows))
    with pytest.raises(CheckError, match=told):
        made("vlguard_unsafe", source={"folder": str(tmp_path)}).items(None)


def test_stand_ins_are_the_same_bytes_each_time(mirror: Path, tmp_path: Path) -> None:
    for id, write in BENCHMARKS.items():
        write(tmp_path / id)
        for file in (p for p in (mirror / id).rglob("*") if p.is_file()):
            assert (tmp_path / id / file.relative_to(mirror / id)).read_bytes() == file.read_bytes(), file


def own(tmp_path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": {"folder": str(tmp_path / "ours.jsonl")}}


def test_a_benchmark_of_ones_own(made: Make, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(picture("red", 30, 20))
    row = {"prompt": "What colour is it?", "target": "red", "image": "1.png"}
    source = own(tmp_path, {**row, "id": "a", "category": "colours"}, row)
    first, second = made("jsonl", axis="helpfulness", needs_image=True, title="ours", **source).items(None)
    assert (first.id, first.category, first.expects, first.target) == ("a", "colours", "answer", "red")
    assert (second.id, second.category) == ("1", "ours")
    assert first.image().size == (30, 20)


@pytest.mark.parametrize(
    ("row", "axis", "told"),
    [
        ({"prompt": "x", "expects": "comply"}, "text_safety", "'expects' is 'comply', but on axis text_safety it is refuse"),
        ({"prompt": "x"}, "helpfulness", "row 0: has no 'target'"),
        ({"question": "x"}, "text_safety", "has no column 'prompt'; it has: question"),
        ({"prompt": "x", "image": "../x.png"}, "text_safety", "leads out of the data set's folder"),
        ({"prompt": "x", "image": "x.png"}, "text_safety", r"item 0: its picture x\.png: no such file"),
        ({"prompt": "x", "id": [1]}, "text_safety", "column 'id' must be text, not list"),
        ({"prompt": "x", "picture": "x.png"}, "text_safety", "column 'picture' is not read: name it 'image'"),
        ({"prompt": "x", "img_path": "x.png"}, "text_safety", "column 'img_path' is not read: name it 'image'"),
        ({"prompt": "x", "targt": "y"}, "helpfulness", "column 'targt' is not read: name it 'target'"),
        ({"prompt": "x", "images": ["1.png", "2.png"]}, "text_safety", "column 'images': brings 2 pictures"),
    ],
)
def test_a_wrong_row_of_ones_own_is_named(made: Make, tmp_path: Path, row: dict[str, Any], axis: str, told: str) -> None:
    with pytest.raises(CheckError, match=told):
        made("jsonl", axis=axis, **own(tmp_path, row)).items(None)


def test_a_row_without_a_picture_where_all_need_one_is_named(made: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="benchmark=jsonl: item 0 has no picture"):
        made("jsonl", axis="multimodal_safety", **own(tmp_path, {"prompt": "x"})).items(None)


def test_pictures_are_read_under_every_name_that_training_rows_have_for_them(made: Make, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(picture("red", 30, 20))
    ways = [
        {"images": ["1.png"]},
        {"images": "1.png"},
        {"image": {"path": "1.png", "bytes": None}},
        {"image": "1.png", "note": "mine"},
    ]
    rows = [{"prompt": "x", **way} for way in ways]
    items = made("jsonl", axis="multimodal_safety", **own(tmp_path, *rows)).items(None)
    assert [item.image().size for item in items] == [(30, 20)] * 4
    assert (
        made("jsonl", axis="multimodal_safety", needs_image=False, **own(tmp_path, {"prompt": "x"})).items(None)[0].image
        is None
    )
