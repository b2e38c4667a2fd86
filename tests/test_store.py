"""The store: one artifact for a key whatever happens, and damage is seen before it is used."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlsafe.errors import CorruptArtifactError, StoreError
from vlsafe.files import read_json, write_json
from vlsafe.store import Store

KEY = "a" * 20


def publish(store: Store, text: str = "weights", key: str = KEY) -> bool:
    scratch = store.scratch("merge", key)
    (scratch / "sub").mkdir()
    (scratch / "sub" / "file.txt").write_text(text)
    return store.publish(scratch, "merge", key, {"version": 1})


def test_published_files_are_in_the_manifest_and_work_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    scratch = store.scratch("merge", KEY)
    (scratch / "work" / "checkpoint").write_text("half done")
    (scratch / "file.txt").write_text("x")
    assert store.publish(scratch, "merge", KEY, {"version": 1})
    folder = store.read("merge", KEY)
    assert sorted(p.name for p in folder.iterdir()) == ["file.txt", "manifest.json"]
    assert list(read_json(folder / "manifest.json")["files"]) == ["file.txt"]
    assert store.leftovers() == []


def test_the_first_of_many_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def race(i: int) -> bool:
        scratch = tmp_path / ".scratch" / f"merge-{KEY}-race{i}"
        scratch.mkdir(parents=True)
        (scratch / "file.txt").write_text(str(i))
        return store.publish(scratch, "merge", KEY, {"version": 1})

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert sum(won) == 1
    assert (store.read("merge", KEY) / "file.txt").read_text() == str(won.index(True))
    assert store.leftovers() == []


def test_what_a_dead_try_had_in_work_is_handed_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.scratch("adaptation", KEY)
    (first / "work" / "checkpoint").write_text("step 100")
    (first / "half.txt").write_text("torn")
    second = store.scratch("adaptation", KEY)
    assert (second / "work" / "checkpoint").read_text() == "step 100"
    assert not first.exists()
    assert not (second / "half.txt").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "sub" / "file.txt").write_text("short"), "has 5 bytes, not 7"),
        (lambda f: (f / "sub" / "file.txt").unlink(), "is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest unreadable"),
        (lambda f: (f / "manifest.json").unlink(), "manifest unreadable"),
        (lambda f: write_json(f / "manifest.json", {"key": "other", "files": {}}), "manifest of another artifact"),
        (lambda f: write_json(f / "manifest.json", {"key": KEY, "files": {"a": None}}), "its manifest says nothing of a"),
    ],
)
def test_damage_is_seen_when_planning(tmp_path: Path, damage: object, reason: str) -> None:
    store = Store(tmp_path)
    publish(store)
    damage(store.path("merge", KEY))  # type: ignore[operator]
    with pytest.raises(CorruptArtifactError, match=reason):
        store.exists("merge", KEY)


def test_a_flipped_byte_is_seen_at_the_first_read_and_after_any_change(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    file = store.path("merge", KEY) / "sub" / "file.txt"
    store.read("merge", KEY)
    file.write_text("Weights")  # same size
    os.utime(file, ns=(1, 1))
    assert store.exists("merge", KEY)
    with pytest.raises(CorruptArtifactError, match=r"the hash of sub/file\.txt differs"):
        store.read("merge", KEY)
    store.quarantine("merge", KEY)
    assert not store.exists("merge", KEY)
    assert publish(store)


def test_another_schema_version_is_not_reused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)
    with pytest.raises(CorruptArtifactError, match="made by schema version 1, not 2"):
        store.exists("merge", KEY, version=2)


def test_an_unwritable_store_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"can't be written .*set store=FOLDER"):
        Store(tmp_path / "file").check_writable()


def test_a_store_with_too_little_room_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"MiB free and this plan needs about \d+: free some space"):
        Store(tmp_path).check_writable(needed_bytes=2**60)
