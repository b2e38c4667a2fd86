"""A data set given as one file: the pictures beside it that its rows name are in its key, by whatever reader, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest

from vlsafe import registry
from vlsafe.data import beside
from vlsafe.data.pictures import Picture
from vlsafe.errors import CheckError
from vlsafe.fingerprint import fingerprint
from vlsafe.settings import spec_of
from vlsafe.sources import DataSource, Source
from vlsafe.stand_in.benchmarks import BENCHMARKS
from vlsafe.stand_in.sets import SETS, picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def key(file: Path) -> Any:
    return DataSource(folder=str(file)).spec()


def put(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def own(folder: Path, names: Any = ("pictures/1.png", "pictures/2.png")) -> Path:
    """A file of rows beside their pictures, all of the same size."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes([number]) * 9)
    return put(folder / "ours.jsonl", *({"prompt": "x", "completion": "y", "image": name} for name in names))


def test_another_picture_of_the_same_size_is_another_key(tmp_path: Path) -> None:
    file = own(tmp_path)
    before = key(file)
    (tmp_path / "pictures" / "2.png").write_bytes(b"\7" * 9)
    assert key(file) != before
    (tmp_path / "pictures" / "2.png").write_bytes(b"\1" * 9)
    assert key(file) == before


def test_a_picture_that_comes_or_goes_is_another_key(tmp_path: Path) -> None:
    file = own(tmp_path)
    before = key(file)
    (tmp_path / "pictures" / "2.png").unlink()
    without = key(file)
    assert without != before
    (tmp_path / "pictures" / "1.png").unlink()
    assert key(file) not in (before, without)


def test_what_no_row_names_and_where_it_all_lies_is_in_no_key(tmp_path: Path) -> None:
    file = own(tmp_path / "one")
    before = key(file)
    (tmp_path / "one" / "pictures" / "3.png").write_bytes(b"another set's")
    put(tmp_path / "one" / "theirs.jsonl", {"prompt": "x", "image": "pictures/3.png"})
    assert key(file) == before
    assert key(own(tmp_path / "other")) == before


def test_a_file_that_names_no_picture_keeps_the_key_that_it_had(tmp_path: Path) -> None:
    text = put(tmp_path / "text.jsonl", {"prompt": "x", "completion": "y"})
    inside = tmp_path / "bytes.parquet"
    pq.write_table(pyarrow.Table.from_pylist([{"prompt": "x", "image": {"bytes": b"123", "path": "a.png"}}]), inside)
    for file in (text, inside):
        assert key(file) == {"content": fingerprint(file)}
    folder = own(tmp_path / "folder").parent
    assert key(folder) == {"content": fingerprint(folder)}
    model = own(tmp_path / "model")
    assert Source(folder=str(model)).spec() == {"content": fingerprint(model)}


def test_names_that_lead_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"1")
    file = put(tmp_path / "set" / "ours.jsonl", {"image": "../secret.png"}, {"image": str(tmp_path / "secret.png")})
    assert beside.names_in(file) == set()
    assert key(file) == {"content": fingerprint(file)}


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png"},
        {"image": {"path": "a.png", "bytes": None}},
        {"images": ["b.png", {"path": "a.png"}]},
        {"picture_of_mine": "a.PNG"},
        {"image": "a"},
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_a_picture_is_found_however_a_row_names_it(tmp_path: Path, row: dict[str, Any], ending: str) -> None:
    rows = [{"prompt": "x", **row}, {"prompt": "y"}]
    file = tmp_path / f"ours{ending}"
    if ending == ".parquet":
        if isinstance(row.get("images"), list):
            rows = [{"prompt": "x", "images": [{"path": "b.png"}, {"path": "a.png"}]}]
        pq.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if ending == ".json" else "".join(json.dumps(one) + "\n" for one in rows))
    named = tmp_path / {"picture_of_mine": "a.PNG"}.get(next(iter(row)), "a" if row == {"image": "a"} else "a.png")
    before = key(file)
    named.write_bytes(b"1")
    there = key(file)
    named.write_bytes(b"2")
    assert len({str(k) for k in (before, there, key(file))}) == 3


def test_many_pictures_count_by_size_and_those_that_are_not_compressed_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = own(tmp_path, ("1.png", "2.png", "3.bmp"))
    few = key(file)
    monkeypatch.setattr(beside, "FEW", 2)
    many = key(file)
    assert many != few
    (tmp_path / "1.png").write_bytes(b"\7" * 9)
    assert key(file) == many
    (tmp_path / "3.bmp").write_bytes(b"\7" * 9)
    assert key(file) != many
    (tmp_path / "3.bmp").write_bytes(b"\2" * 9)
    (tmp_path / "1.png").write_bytes(b"\7" * 8)
    assert key(file) != many
    monkeypatch.setattr(beside, "FEW", 1_000)
    monkeypatch.setattr(beside, "LIGHT", 20)
    light = key(file)
    (tmp_path / "1.png").write_bytes(b"\6" * 8)
    assert key(file) == light


def test_a_file_is_looked_through_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = own(tmp_path)
    before = key(file)
    beside.remembered.cache_clear()  # as another command
    read: list[Path] = []
    real = beside.names_in
    monkeypatch.setattr(beside, "names_in", lambda path: read.append(path) or real(path))
    assert key(file) == before
    assert read == []
    (tmp_path / "more.png").write_bytes(b"1")
    put(file, {"prompt": "x", "completion": "y", "image": "more.png"})
    assert key(file) != before
    assert read == [file]


def test_of_many_names_a_command_asks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = own(tmp_path)
    monkeypatch.setattr(beside, "OFTEN", 1)
    monkeypatch.setattr(beside, "_often", {})
    before = key(file)
    (tmp_path / "pictures" / "2.png").unlink()
    assert key(file) == before
    beside._often.clear()
    assert key(file) != before


def test_rows_that_cant_be_read_are_named_when_the_plan_is_made(tmp_path: Path) -> None:
    file = put(tmp_path / "ours.jsonl", {"prompt": "x"})
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(CheckError, match=r"ours\.jsonl: row 1: is no JSON"):
        key(file)


def readers() -> Iterator[Any]:
    """Every reader of a file that names pictures beside it, with the file that its stand-in has."""
    for group, name, id, file in (
        ("dataset", "llava_pretrain", "liuhaotian/LLaVA-Pretrain", "blip_laion_cc_sbu_558k.json"),
        ("dataset", "llava_instruct", "liuhaotian/LLaVA-Instruct-150K", "llava_v1_5_mix665k.json"),
        ("dataset", "vlguard", "ys-zong/VLGuard", "train.json"),
        ("benchmark", "vlguard_unsafe", "ys-zong/VLGuard", "test.json"),
        ("dataset", "jsonl", "", "ours.jsonl"),
        ("benchmark", "jsonl", "", "ours.jsonl"),
    ):
        yield pytest.param(group, name, id, file, id=f"{group}-{name}")


@pytest.mark.parametrize(("group", "name", "id", "file"), readers())
def test_every_file_that_a_reader_shows_pictures_from_is_in_the_key(
    tmp_path: Path, group: str, name: str, id: str, file: str
) -> None:
    if id:
        (SETS if group == "dataset" else BENCHMARKS)[id](tmp_path)
    else:
        (tmp_path / "1.png").write_bytes(picture(1))
        put(tmp_path / file, {"prompt": "x", "completion": "y", "image": "1.png"})
    axis = {"axis": "text_safety"} if (group, name) == ("benchmark", "jsonl") else {}
    made: Any = registry.make(group, {"name": name, "source": {"folder": str(tmp_path / file)}, **axis})
    shown: list[Picture]
    if group == "benchmark":
        shown = [item.image.picture for item in made.items(None)]
    else:
        shown = [one for row in made.rows(made.serves[0]) for one in row["images"]]
    files = {one.path for one in shown}
    assert files and None not in files
    for path in files:
        assert path is not None
        before, content = spec_of(made), path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert spec_of(made) != before, path
        path.write_bytes(content)
        assert spec_of(made) == before
