"""The content of local files as a short hash, for keys: read once, then remembered by path, size and time of change."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlsafe.errors import SourceError
from vlsafe.files import read_json, sha256, write_json
from vlsafe.keys import digest

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif")  # compressed, so that another picture has another size
TOLD = 2 * 10**9  # bytes: reading more than this is said
MANY = 10_000  # files: a folder with more is looked through once by a command, which asks for every cell
_many: dict[Path, str] = {}


def fingerprint(path: Path) -> str:
    """Of a file its content; of a folder the names below it with the content of each, pictures by their size alone.

    Names that begin with a dot are left out. A name without any content, an empty folder, raises `SourceError`.
    """
    path = path.absolute()
    if path in _many:
        return _many[path]
    files = [("", path)] if path.is_file() else sorted(_below(path, ""))
    if not files:
        raise SourceError(f"{path}: the folder is empty")
    read = contents([(name, f) for name, f in files if not _picture(name)])
    found = digest([[name, read[name] if name in read else f"size {f.stat().st_size}"] for name, f in files])
    if len(files) > MANY:
        _many[path] = found
    return found


def contents(files: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """The hash of each file's content, by the name that it is given; a file that hasn't changed is not read again."""
    cache = _Cache()
    unread = sum(f.stat().st_size for _, f in files if cache.known(f) is None)
    if unread > TOLD:
        print(f"reading {unread / 1e9:.1f} GB once, {files[0][1]} first, to know what is in it", file=sys.stderr)
    read = {name: cache.content(f) for name, f in files}
    cache.keep()
    return read


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vlsafe"


def forget() -> None:
    """Folders and files that were looked through once by this process are looked through again."""
    _many.clear()
    if "vlsafe.data.beside" in sys.modules:
        sys.modules["vlsafe.data.beside"]._often.clear()


def _picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def _below(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", Path(entry.path)


class _Cache:
    """Hashes that earlier commands took, in the user's cache folder; where that can't be written, each command reads again."""

    def __init__(self) -> None:
        self.file = cache_folder() / "hashes.json"
        self.entries: dict[str, list[int | str]] = {}
        self.changed = False
        with contextlib.suppress(OSError, ValueError):
            self.entries = read_json(self.file)

    def known(self, file: Path) -> str | None:
        entry, now = self.entries.get(str(file)), file.stat()
        return str(entry[2]) if entry and entry[:2] == [now.st_size, now.st_mtime_ns] else None

    def content(self, file: Path) -> str:
        known = self.known(file)
        if known is None:
            now = file.stat()
            known = sha256(file)
            self.entries[str(file)] = [now.st_size, now.st_mtime_ns, known]
            self.changed = True
        return known

    def keep(self) -> None:
        if self.changed:
            with contextlib.suppress(OSError):
                write_json(self.file, self.entries)
