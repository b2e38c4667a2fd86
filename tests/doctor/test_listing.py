"""What the doctor asks of the hub, answered by a small server here: its word counts more than what was once written down."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launch
from vlsafe import registry
from vlsafe.sources import DataSource, Source, download

RELEASED = ("+experiment=llava15_released", "tracking=none")
VICUNA, LLAVA, XSTEST = "lmsys/vicuna-7b-v1.5", "llava-hf/llava-1.5-7b-hf", "natolambert/xstest-v2-copy"
Repositories = dict[str, dict[str, Any]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repositories]:
    """What the server has: files by repository, with their sizes."""
    has: Repositories = {}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            id = "/".join(self.path.split("/")[3:5])
            found = has.get(id)
            said: dict[str, Any] = {"error": "Repository not found"}
            if found is not None:
                files = [{"rfilename": name, "size": size} for name, size in found["files"].items()]
                said = {"id": id, "sha": "0" * 40, "private": False, "gated": found.get("gated", False), "siblings": files}
            body = json.dumps(said).encode()
            self.send_response(200 if found is not None else 404)
            if found is None:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield has
    server.shutdown()
    server.server_close()


def doctor(launch: Launch, *overrides: str) -> str:
    done = launch.run("doctor.py", f"outputs={launch.outputs}", *overrides)
    assert done.returncode in (0, 1), done.stderr
    return " ".join(done.stdout.split())


def test_the_hubs_own_list_of_files_counts(launch: Launch, hub: Repositories) -> None:
    hub[VICUNA] = {"files": {"config.json": 10, "model.safetensors": 13 * 10**9, "pytorch_model.bin": 13 * 10**9}}
    hub[LLAVA] = {"files": {"config.json": 10, "pytorch_model-00001-of-00002.bin": 14 * 10**9}}
    hub[XSTEST] = {"files": {"data/prompts-00000.parquet": 2 * 10**9, "data/gpt4-00000.parquet": 10**9}}
    hub["walledai/AdvBench"] = {"files": {"data/train-00000.parquet": 10**9}}
    said = doctor(launch, *RELEASED)
    assert "model.llm: comes from the hub on the first run, 13.0 GB" in said  # it was taken to be pickled, and is not any more
    assert "model.lvlm: its weights are pickled there, which is not read →" in said
    revision = "--revision b234b804b114d9e37bb655e11cbbb5f5e971b7a9 --include 'pytorch_model*.bin' --include '*.json'"
    assert f"hf download {LLAVA} {revision}" in said
    assert "xstest_unsafe.source: comes from the hub on the first run, 2.0 GB" in said  # without what is not read
    assert "advbench.source: comes from the hub on the first run, 1.0 GB" in said  # it was gated
    assert "ys-zong/VLGuard vlguard" not in said
    assert "vlguard_unsafe.source: the hub has no dataset of this id" in said
    assert "GB of downloads" in said


def test_where_the_hub_is_not_reached_what_was_written_down_is_told_as_such(
    launch: Launch, hub: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    said = doctor(launch, *RELEASED)
    assert (
        "model.llm: its weights are pickled there, which is not read (as it was when this was written: the hub was not" in said
    )
    assert "model.lvlm: comes from the hub on the first run →" in said
    assert "advbench.source: gated, and there is no token" in said


def test_a_user_who_is_offline_asks_nobody(launch: Launch, hub: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    hub[VICUNA] = {"files": {"model.safetensors": 1}}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "model.llm: its weights are pickled there" in doctor(launch, *RELEASED)


def test_the_command_downloads_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each component's fetch and the doctor's command have one list of patterns."""
    fetched: list[Any] = []

    class Fetched(Exception):
        pass

    def fetch(self: Source, allow: Any = None) -> Path:
        fetched.append(allow)
        raise Fetched

    monkeypatch.setattr(Source, "fetch", fetch)
    for name in registry.names("dataset"):
        made = registry.make("dataset", {"name": name, "source": {"id": "some/one", "local": "/"}})
        if (
            made.page.startswith("https://github.com/") or name == "jsonl"
        ):  # a user's own: whole, with the pictures that it names
            continue
        with pytest.raises(Fetched):
            made.rows(made.serves[0])
        assert fetched.pop() == made.reads("source"), name
        assert made.reads("source") is not None, name
    for name in registry.names("benchmark"):
        if name.startswith("mw_") or name == "jsonl":
            continue
        made = registry.make("benchmark", {"name": name, "source": {"id": "some/one"}})
        with pytest.raises(Fetched):
            made.items(None)
        assert fetched.pop() == made.reads("source"), name


def test_a_command_is_what_the_hubs_client_takes() -> None:
    source = DataSource("org/name", "0" * 40)
    command = download(source, ["data/*.parquet", "a b.zip"], "here")
    expected = ["hf", "download", "org/name", "--repo-type", "dataset", "--revision", "0" * 40]
    expected += ["--include", "data/*.parquet", "--include", "a b.zip", "--local-dir", "here"]
    assert shlex.split(command) == expected
    assert download(Source("org/name"), None) == "hf download org/name"


def test_every_model_says_what_is_read_of_it() -> None:
    from vlsafe.model.assembled import FILES, Assembled
    from vlsafe.model.from_lvlm import FromLvlm
    from vlsafe.train.released import ReleasedAdaptation

    one, other = Source("org/one"), Source("org/other")
    for component in (Assembled(one, other), FromLvlm(one, other), ReleasedAdaptation(one)):
        for where, _, owner in needed_of(component):
            assert owner.reads(where) == FILES
    assert "*.py" in Assembled(one, other, trust_remote_code=True).reads("llm")


def needed_of(component: Any) -> Iterator[tuple[str, Source, Any]]:
    from vlsafe.needed import owner
    from vlsafe.sources import sources_of

    for path, source in sources_of(component):
        yield path, source, owner(component, path)
