"""The store: artifacts by (stage, key), published by one atomic rename and read-only from then on.

<root>/<stage>/<key>/            an artifact: its files and manifest.json
<root>/.scratch/<stage>-<key>-*/ a stage that is running, or that died: the next try takes over its `work` folder
<root>/.locks/                   leases (they only save work)
<root>/.families/<family>/<key>  artifacts that differ only in how many rows they hold
<root>/.verdicts/<name>/         what a filter's judge said of rows, a file for each training that asked (with `gc`, until no
                                 sweep has that training)
<root>/.verified/                which files' hashes were checked, by size and time
<root>/.corrupt/                 what failed its check, kept until `gc`
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.errors import CorruptArtifactError, StoreError
from vlsafe.files import files_below, read_json, revalidate, sha256, sync, write_json
from vlsafe.lock import Lease
from vlsafe.stage import STAGE_KINDS

MANIFEST = "manifest.json"
WORK = "work"
MIN_FREE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ArtifactId:
    stage: str
    key: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    def lease(self, stage: str, key: str) -> Lease:
        return Lease(self.root / ".locks" / f"{stage}-{key}.json")

    def check_writable(self, needed_bytes: int = 0) -> None:
        """Raises `StoreError` before slow work where the folder can't be written or has too little room."""
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"store={self.root} can't be written ({error.strerror}): set store=FOLDER to a writable one"
            ) from error
        free = shutil.disk_usage(self.root).free
        wanted = max(needed_bytes, MIN_FREE_BYTES)
        if free < wanted:
            raise StoreError(
                f"store={self.root} has {free / 2**20:.0f} MiB free and this plan needs about {wanted / 2**20:.0f}: "
                "free some space (launch/store.py gc) or set store=FOLDER"
            )

    # Reading

    def manifest(self, stage: str, key: str) -> dict[str, Any]:
        """Raises `CorruptArtifactError` for a manifest that can't be read, `StoreError` where there is no such artifact."""
        folder = self.path(stage, key)
        if not folder.is_dir():
            raise StoreError(f"no artifact {stage}/{key} in {self.root}")
        try:
            manifest = read_json(folder / MANIFEST)
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(stage, key, f"manifest unreadable: {type(error).__name__}") from error
        if not isinstance(manifest, dict) or manifest.get("key") != key or not isinstance(manifest.get("files"), dict):
            raise CorruptArtifactError(stage, key, "manifest of another artifact")
        return manifest

    def exists(self, stage: str, key: str, version: int | None = None) -> bool:
        """True when every file is there with its size, else `CorruptArtifactError`. Hashes wait for the first read."""
        if not self.path(stage, key).exists():
            revalidate(self.root / stage)  # that it wasn't there may be what this machine remembers
            if not self.path(stage, key).exists():
                return False
        if not self.path(stage, key).is_dir():
            raise CorruptArtifactError(stage, key, "a file where a folder belongs")
        manifest = self.manifest(stage, key)
        if version is not None and manifest.get("version") != version:
            raise CorruptArtifactError(stage, key, f"made by schema version {manifest.get('version')}, not {version}")
        for name, entry in manifest["files"].items():
            if not isinstance(entry, dict) or not {"size", "sha256"} <= set(entry):
                raise CorruptArtifactError(stage, key, f"its manifest says nothing of {name}")
            try:
                size = (self.path(stage, key) / name).stat().st_size
            except OSError:
                raise CorruptArtifactError(stage, key, f"{name} is missing") from None
            if size != entry["size"]:
                raise CorruptArtifactError(stage, key, f"{name} has {size} bytes, not {entry['size']}")
        return True

    def read(self, stage: str, key: str) -> Path:
        """The folder of an artifact whose hashes are verified, once for each state of its files on disk."""
        if not self.exists(stage, key):
            raise StoreError(f"no artifact {stage}/{key} in {self.root}")
        self.verify(stage, key, again=False)
        return self.path(stage, key)

    def verify(self, stage: str, key: str, again: bool = True) -> None:
        """Raises `CorruptArtifactError` where a file's hash differs from the manifest's. `again=False` trusts files that were
        verified before and have kept size and modification time."""
        self.exists(stage, key)
        folder = self.path(stage, key)
        record = self.root / ".verified" / f"{stage}-{key}.json"
        known: dict[str, list[int]] = {}
        if not again:
            with contextlib.suppress(OSError, ValueError):
                known = read_json(record)
        state = {}
        for name, entry in self.manifest(stage, key)["files"].items():
            stat = (folder / name).stat()
            state[name] = [stat.st_size, stat.st_mtime_ns]
            if known.get(name) != state[name] and sha256(folder / name) != entry["sha256"]:
                raise CorruptArtifactError(stage, key, f"the hash of {name} differs")
        if state != known:
            with contextlib.suppress(OSError):  # a read-only store can still be read
                write_json(record, state)

    def quarantine(self, stage: str, key: str) -> None:
        """Move a corrupt artifact aside, so that the stage runs again."""
        grave = self.root / ".corrupt" / f"{stage}-{key}-{secrets.token_hex(4)}"
        try:
            grave.parent.mkdir(parents=True, exist_ok=True)
            self.path(stage, key).rename(grave)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(
                f"{stage}/{key} is corrupt and store={self.root} can't be written ({error.strerror}): set store=FOLDER"
            ) from error

    # Writing

    def scratch(self, stage: str, key: str) -> Path:
        """A folder of this process's own for a run of the stage. Call it under the lease: what an earlier, dead run left in
        `work` is moved over; the rest of it is dropped."""
        base = self.root / ".scratch"
        base.mkdir(parents=True, exist_ok=True)
        mine = base / f"{stage}-{key}-{secrets.token_hex(6)}"
        mine.mkdir()
        for old in sorted(base.glob(f"{stage}-{key}-*"), key=lambda p: p.stat().st_mtime, reverse=True):
            if old == mine:
                continue
            if not (mine / WORK).exists():
                with contextlib.suppress(OSError):
                    (old / WORK).rename(mine / WORK)
            shutil.rmtree(old, ignore_errors=True)
        (mine / WORK).mkdir(exist_ok=True)
        return mine

    def publish(self, scratch: Path, stage: str, key: str, manifest: dict[str, Any], family: str | None = None) -> bool:
        """Complete the manifest and rename into place. False where another process was first: ours is discarded."""
        # Set aside where a next try would find it, not deleted yet: a kill before the rename must not cost the checkpoints.
        aside = scratch.with_name(scratch.name + "-published")
        aside.mkdir()
        with contextlib.suppress(FileNotFoundError):
            (scratch / WORK).rename(aside / WORK)
        files = {}
        if family is not None:  # before the artifact: a mark without one is nothing, one without a mark is never reused
            mark = self.root / ".families" / family / key
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        for name in files_below(scratch):
            with (scratch / name).open("rb") as handle:
                os.fsync(handle.fileno())
            files[name.as_posix()] = {"size": (scratch / name).stat().st_size, "sha256": sha256(scratch / name)}
        write_json(scratch / MANIFEST, {"stage": stage, "key": key, **manifest, "files": files})
        sync(scratch)
        target = self.path(stage, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
            return False
        sync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def verdicts(self, name: str, stage: str, key: str) -> Path:
        """Where a training keeps what its filter's judge says; others with the same filter keep theirs beside it."""
        return self.root / ".verdicts" / name / f"{stage}-{key}.jsonl"

    # Looking around

    def kept_verdicts(self) -> Iterator[tuple[ArtifactId, Path]]:
        """(the training that asked for them, their file)"""
        for path in sorted((self.root / ".verdicts").glob("*/*-*.jsonl")):
            stage, _, key = path.stem.partition("-")
            yield ArtifactId(stage, key), path

    def relatives(self, stage: str, family: str | None, key: str) -> list[Path]:
        """Verified artifacts of the same family: what an artifact that only holds more or fewer rows may reuse."""
        found = []
        folder = self.root / ".families" / (family or "none")
        for other in sorted(p.name for p in folder.iterdir()) if family and folder.is_dir() else []:
            if other != key:
                with contextlib.suppress(StoreError):
                    found.append(self.read(stage, other))
        return found

    def artifacts(self, stages: Iterable[str] = STAGE_KINDS) -> Iterator[ArtifactId]:
        for stage in stages:
            folder = self.root / stage
            if folder.is_dir():
                yield from (ArtifactId(stage, p.name) for p in sorted(folder.iterdir()) if p.is_dir())

    def remove(self, stage: str, key: str) -> None:
        """Renamed away first, so that a half-deleted artifact is never seen."""
        grave = self.root / ".corrupt" / f"removed-{stage}-{key}-{secrets.token_hex(4)}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        self.path(stage, key).rename(grave)
        shutil.rmtree(grave)

    def leftovers(self, older_than_seconds: float = 0.0) -> list[Path]:
        """Scratch folders that nobody holds a lease on, and corrupt artifacts."""
        found = []
        now = time.time()
        for folder in (self.root / ".scratch", self.root / ".corrupt"):
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                stage, _, rest = path.name.partition("-")
                lease = self.lease(stage, rest.partition("-")[0])
                if folder.name == ".scratch" and lease.path.exists():
                    if not lease.acquire():
                        continue
                    lease.release()
                if now - path.stat().st_mtime >= older_than_seconds:
                    found.append(path)
        return found
