"""Sources: what enters a key, the mirror, the hub's refusals (by the real client against a server of ours), pins that stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlsafe.errors import ConfigError, SourceError
from vlsafe.fingerprint import fingerprint
from vlsafe.settings import build, settings_of, spec_of
from vlsafe.sources import DataSource, Source, check_resolved, placed, sources_of

COMMIT, LATER = "0123456789" * 4, "abcdef0123" * 4


@dataclass(frozen=True)
class Nested:
    llm: Source
    more: tuple[DataSource, ...] = ()
    by_name: dict[str, Source] = field(default_factory=dict)


def made(folder: Path, text: str = "{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    return folder


def test_a_key_holds_the_commit_or_the_content_and_never_a_path(tmp_path: Path) -> None:
    assert spec_of(Source("org/name", COMMIT)) == {"id": "org/name", "revision": COMMIT}
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    assert spec_of(Source(folder=str(one))) == spec_of(Source("org/name", folder=str(other)))
    made(other, '{"changed": 1}')
    assert spec_of(Source(folder=str(one))) != spec_of(Source(folder=str(other)))


def test_pictures_count_by_name_and_size_and_everything_else_by_content(tmp_path: Path) -> None:
    folder = made(tmp_path)
    (folder / "a.jpg").write_bytes(b"1234")
    (folder / ".hidden").write_text("x")
    before = fingerprint(folder)
    (folder / "a.jpg").write_bytes(b"5678")
    (folder / ".hidden").write_text("y")
    assert fingerprint(folder) == before
    (folder / "a.jpg").write_bytes(b"567")
    assert fingerprint(folder) != before
    (folder / "b.bmp").write_bytes(b"1234")  # not compressed: another picture of the same size in pixels has as many bytes
    before = fingerprint(folder)
    (folder / "b.bmp").write_bytes(b"5678")
    assert fingerprint(folder) != before


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = made(tmp_path / "model") / "config.json"
    before = fingerprint(file.parent)
    assert (tmp_path / "cache" / "vlsafe" / "hashes.json").is_file()
    os.utime(file, ns=(1, 1))
    file.write_text("[]")  # the same size
    assert fingerprint(file.parent) != before


def test_the_mirror_reaches_every_source_and_is_taken_before_the_hub(tmp_path: Path) -> None:
    made(tmp_path / "org" / "name")
    nested = Nested(Source("org/name", COMMIT), (DataSource("org/set", COMMIT),), {"judge": Source("org/name", COMMIT)})
    there = placed(nested, str(tmp_path))
    assert {path: source.local for path, source in sources_of(there)} == dict.fromkeys(
        ("llm", "more[0]", "by_name.judge"), str(tmp_path)
    )
    assert there.llm.fetch() == tmp_path / "org" / "name"
    assert there.more[0].path is None  # not mirrored: still the hub's
    assert build(Nested, settings_of(there), "") == there  # what a worker builds again


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "needs a hub id"),
        ({"id": "../etc"}, "must be a hub id"),
        ({"id": "org/name/deep"}, "must be a hub id"),
        ({"id": "org/name", "revision": "main"}, "must be a commit"),
    ],
)
def test_what_no_source_can_be(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(Source, settings, "model.llm")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such file or folder"):
        spec_of(Source(folder=str(tmp_path / "none")))


class Hub(BaseHTTPRequestHandler):
    """As the hub answers: a gated repository, one that isn't there, and one whose newest commit moves."""

    newest = COMMIT

    def do_GET(self) -> None:
        if "/gated" in self.path:
            return self._say(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if "/missing" in self.path:
            return self._say(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found"})
        return self._say(200, {"id": "org/open", "sha": type(self).newest, "siblings": []}, {})

    do_HEAD = do_GET  # noqa: N815

    def _say(self, status: int, body: dict[str, object], headers: dict[str, str]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.newest = COMMIT
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(code: str, endpoint: str, tmp_path: Path, **more: str) -> str:
    """What a fresh process prints: the hub's client reads its endpoint when it is imported."""
    prelude = "from pathlib import Path\nfrom vlsafe.sources import *\nfrom vlsafe.errors import SourceError\n"
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | more
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    wrapped = "try:\n    print(" + code + ")\nexcept SourceError as error:\n    print('refused:', error)\n"
    done = subprocess.run([sys.executable, "-c", prelude + wrapped], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_gated_repository_says_which_page_to_accept_and_which_variable_to_set(hub: str, tmp_path: Path) -> None:
    told = asked(f"DataSource('org/gated', '{COMMIT}').fetch()", hub, tmp_path)
    assert told.startswith("refused: org/gated is gated")
    assert f"{hub}/datasets/org/gated" in told
    assert "HF_TOKEN is not set" in told
    secret = asked(f"DataSource('org/gated', '{COMMIT}').fetch()", hub, tmp_path, HF_TOKEN="hf_secret")
    assert "HF_TOKEN is set" in secret
    assert "hf_secret" not in secret


def test_an_id_that_does_not_exist(hub: str, tmp_path: Path) -> None:
    assert "the hub has no model of this id" in asked(f"Source('org/missing', '{COMMIT}').fetch()", hub, tmp_path)


def test_a_hub_out_of_reach_says_how_to_do_without(tmp_path: Path) -> None:
    told = asked(f"Source('org/open', '{COMMIT}').fetch()", "http://127.0.0.1:9", tmp_path)
    assert told.startswith("refused: org/open: is not in the local cache and the hub can't be reached")
    assert "local=FOLDER" in told


def test_the_newest_commit_is_taken_once_and_stays(hub: str, tmp_path: Path) -> None:
    code = f"placed(Source('org/open'), None, Path({str(tmp_path / 'revisions.json')!r})).revision"
    assert asked(code, hub, tmp_path) == COMMIT
    Hub.newest = LATER
    assert asked(code, hub, tmp_path) == COMMIT
    assert json.loads((tmp_path / "revisions.json").read_text()) == {"models/org/open": COMMIT}


def test_a_commit_that_nobody_knows_is_planned_and_refused_before_anything_runs(tmp_path: Path) -> None:
    code = f"placed(Source('org/open'), None, Path({str(tmp_path / 'revisions.json')!r})).spec()"
    assert asked(code, "http://127.0.0.1:9", tmp_path) == "{'id': 'org/open', 'revision': 'unresolved'}"
    assert not (tmp_path / "revisions.json").exists()
    check_resolved({"model": {"model": spec_of(Source("org/name", COMMIT))}})
    with pytest.raises(SourceError, match=r"org/open: its commit is not known"):
        check_resolved({"model": {"model": {"llm": {"id": "org/open", "revision": "unresolved"}}}})


def test_a_folder_of_many_pictures_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlsafe import fingerprint as module

    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    first = module.fingerprint(tmp_path)
    monkeypatch.setattr(module, "MANY", 3)
    assert module.fingerprint(tmp_path) == first
    (tmp_path / "5.jpg").write_bytes(b"x")
    assert module.fingerprint(tmp_path) == first
    monkeypatch.setattr(module, "_many", {})
    assert module.fingerprint(tmp_path) != first
