"""A user's own rows: which files of a folder are read, for training and evaluation alike, and what is fetched from the hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.test_sources import COMMIT, asked
from vlsafe import registry
from vlsafe.data import own
from vlsafe.errors import CheckError, ConfigError
from vlsafe.settings import spec_of
from vlsafe.sources import DataSource
from vlsafe.stand_in.sets import picture

Grid = Callable[..., Any]
ROW = {"prompt": "Why?", "completion": "So.", "target": "So", "image": "pictures/1.png"}


def component(group: str, folder: Path, **settings: Any) -> Any:
    axis = {"axis": "helpfulness"} if group == "benchmark" else {}
    return registry.make(group, {"name": "jsonl", "source": {"folder": str(folder)}, **axis, **settings})


def names(group: str, folder: Path, **settings: Any) -> list[str]:
    """The prompts that are read, which here are their files' names."""
    made = component(group, folder, **settings)
    made.check_files()
    if group == "benchmark":
        return [item.prompt for item in made.items(None)]
    return [row["prompt"][0]["content"][0]["text"] for row in made.rows("instruct")]


def filled(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet as pq

            pq.write_table(pyarrow.Table.from_pylist([{"prompt": name, "completion": "y", "target": "y"}]), folder / name)
        else:
            (folder / name).write_text(json.dumps({"prompt": name, "completion": "y", "target": "y"}) + "\n")
    return folder


both = pytest.mark.parametrize("group", ["dataset", "benchmark"])


@both
@pytest.mark.parametrize(
    "files",
    [
        ["ours.jsonl"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["test-00000-of-00002-0123456789abcdef.parquet", "test-00001-of-00002-fedcba9876543210.parquet"],
        ["part-1.jsonl", "part-2.jsonl", "part-3.jsonl"],
        ["00000.jsonl", "00001.jsonl"],
        ["my-2-sets-00001-of-00001.jsonl"],
    ],
    ids=str,
)
def test_one_file_or_the_parts_of_one_set_are_read(tmp_path: Path, group: str, files: list[str]) -> None:
    filled(tmp_path, *files, "notes/other.jsonl")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".hidden.jsonl").write_text("{}")
    assert names(group, tmp_path) == files


@both
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["a.jsonl", "b.jsonl"], r"several files of rows \(a\.jsonl, b\.jsonl\), .* set file to one \(file: a\.jsonl\)"),
        (["ours.json", "ours.jsonl"], r"several files of rows \(ours\.json, ours\.jsonl\)"),
        (["ours-v1.jsonl", "ours-v2.jsonl"], "several files of rows"),
        (["ours-2025.jsonl", "ours-2026.jsonl"], "several files of rows"),
        (["data-1.jsonl", "data_1.jsonl"], "several files of rows"),
        (["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"], "several files of rows"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], r"has 2 of the 3 parts .* \(file: '\*\.parquet'\)"),
        (["train-00001-of-00003.jsonl"], "has 1 of the 3 parts"),
        (["data/train.jsonl"], r"no file of rows .*; it has data/train\.jsonl: set file"),
        ([], r"no file of rows \(\.jsonl, "),
    ],
    ids=str,
)
def test_files_that_arent_seen_to_be_one_set_are_named(tmp_path: Path, group: str, files: list[str], told: str) -> None:
    filled(tmp_path, *files)
    with pytest.raises(CheckError, match=told):
        component(group, tmp_path).check_files()
    with pytest.raises(CheckError, match=told):
        own.fetched(DataSource(folder=str(tmp_path)), None)


@both
def test_file_chooses(tmp_path: Path, group: str) -> None:
    filled(tmp_path, "a.jsonl", "b.jsonl", "data/c.jsonl")
    assert names(group, tmp_path, file="b.jsonl") == ["b.jsonl"]
    assert names(group, tmp_path, file="*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(group, tmp_path, file="data/c.jsonl") == ["data/c.jsonl"]
    assert names(group, tmp_path / "a.jsonl", file="a.jsonl") == ["a.jsonl"]
    with pytest.raises(CheckError, match=r"has no d\.jsonl; it has a\.jsonl, b\.jsonl, data/c\.jsonl: set file"):
        names(group, tmp_path, file="d.jsonl")
    with pytest.raises(ConfigError, match=r"a\.jsonl: is a file itself: leave file=b\.jsonl out"):
        names(group, tmp_path / "a.jsonl", file="b.jsonl")


@both
@pytest.mark.parametrize("file", ["../a.jsonl", "/etc/passwd", "data/../../a.jsonl", "", "..", "C:/a.jsonl", "a**.jsonl"])
def test_a_file_that_leads_out_of_its_folder_is_refused(tmp_path: Path, group: str, file: str) -> None:
    filled(tmp_path, "a.jsonl", "set/b.jsonl")
    with pytest.raises(ConfigError, match="must be the name of a file below the source's folder"):
        component(group, tmp_path / "set", file=file)


def test_pictures_lie_from_where_the_chosen_file_lies(tmp_path: Path) -> None:
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    (tmp_path / "data" / "pictures" / "1.png").write_bytes(picture(1))
    (tmp_path / "data" / "ours.jsonl").write_text(json.dumps({**ROW, "image": {"path": "pictures/1.png"}}) + "\n")
    item = component("benchmark", tmp_path, file="data/ours.jsonl", needs_image=True).items(None)[0]
    assert item.image().size == (48, 32)
    row = component("dataset", tmp_path, file="data/ours.jsonl").rows("instruct")[0]
    assert row["images"][0].size == (48, 32)


def test_a_benchmark_without_the_setting_keeps_its_key(tmp_path: Path) -> None:
    filled(tmp_path, "a.jsonl")
    assert "file" not in spec_of(component("benchmark", tmp_path))
    assert spec_of(component("benchmark", tmp_path, file="a.jsonl"))["file"] == "a.jsonl"


def test_it_is_said_before_anything_runs(tmp_path: Path, grid: Grid) -> None:
    filled(tmp_path / "two", "a.jsonl", "b.jsonl")
    filled(tmp_path / "hub" / "org" / "two", "a.jsonl", "b.jsonl")
    one = filled(tmp_path / "one", "a.jsonl") / "a.jsonl"
    base = (
        "model=llama2_7b",
        "adaptation=single_stage",
        "adaptation.optimization.learning_rate=2e-5",
        "safety_tune=none",
        "judge=keyword",
        "data=jsonl",
        "eval=first",
    )
    fine = [f"data.{p}.mine.dataset.source.folder={one}" for p in ("projector", "instruct")]
    asks = "{ours: {name: jsonl, axis: text_safety, source: {%s}}}"
    good = [*base, *fine, "eval.benchmarks=[ours]", "+eval.settings=" + asks % f"folder: {one}"]
    assert len(grid(*good)) == 1
    with pytest.raises(CheckError, match="two: has several files of rows"):
        grid(*good, f"data.instruct.mine.dataset.source.folder={tmp_path / 'two'}")
    with pytest.raises(CheckError, match="two: has several files of rows"):
        grid(*good[:-1], "+eval.settings=" + asks % f"folder: {tmp_path / 'two'}")
    with pytest.raises(CheckError, match="two: has several files of rows"):
        grid(*good[:-1], "+eval.settings=" + asks % "id: org/two", f"local={tmp_path / 'hub'}")


class Hub(BaseHTTPRequestHandler):
    """A repository of the hub: its listing, and its files, with what the client asks for in headers."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    sent: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        prefix = f"/datasets/org/ours/resolve/{COMMIT}/"
        if path == f"/api/datasets/org/ours/tree/{COMMIT}":
            listed = [{"type": "file", "path": p, "size": len(c), "oid": tag(c)} for p, c in type(self).files.items()]
            return self._say(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name not in type(self).files:
            return self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            type(self).sent.append(name)
        content = type(self).files[name]
        return self._say(200, content, {"ETag": f'"{tag(content)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET  # noqa: N815

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return None


def tag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.sent = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READ = {
    "dataset": "[[p.size for p in row['images']] for row in made.rows('instruct')]",
    "benchmark": "[[item.image().size] for item in made.items(None)]",
}


@both
@pytest.mark.parametrize("file", [None, "data/ours.jsonl"])
def test_own_rows_on_the_hub_bring_the_pictures_that_they_name_and_no_others(
    hub: str, tmp_path: Path, group: str, file: str | None
) -> None:
    at = "data/" if file else ""
    lines = [{**ROW, "image": name} for name in ("pictures/1.png", "cover [2].png")]
    Hub.files = {
        f"{at}ours.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        f"{at}pictures/1.png": picture(1),
        f"{at}cover [2].png": picture(3),
        f"{at}cover 2.png": picture(5),
        "weights/large.bin": b"x" * 99,
    }
    settings: dict[str, Any] = {"name": "jsonl", "source": {"id": "org/ours", "revision": COMMIT}, "file": file}
    if group == "benchmark":
        settings |= {"axis": "helpfulness", "needs_image": True}
    code = f"""
from vlsafe import registry
made = registry.make({group!r}, {settings!r})
print({READ[group]})
"""
    (tmp_path / "read.py").write_text(code)
    said = asked(f"exec(Path({str(tmp_path / 'read.py')!r}).read_text()) or ''", hub, tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert said == "[[(48, 32)], [(48, 32)]]"
    assert sorted(Hub.sent) == sorted([f"{at}ours.jsonl", f"{at}pictures/1.png", f"{at}cover [2].png"])


def test_many_pictures_are_asked_for_by_their_folders_and_endings(tmp_path: Path) -> None:
    named = [*(f"coco/a/{i}.jpg" for i in range(300)), *(f"{i}.png" for i in range(300)), "x*/1.png"]
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "ours.jsonl"
    file.write_text("".join(json.dumps({"prompt": "x", "image": name}) + "\n" for name in named))
    assert own.patterns(file, tmp_path) == {"data/coco/*", "data/*.png", "data/x[*]/*"}
