"""The hub client's cache and token, found where it looks for them and without importing it. A token is never read out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlsafe.sources import UNRESOLVED, Source

_said: dict[str, bool] = {}


def home() -> Path:
    base = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(base).expanduser()


def hub_cache() -> Path:
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(given).expanduser() if given else home() / "hub"


def token_there() -> bool:
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    given = os.environ.get("HF_TOKEN_PATH")
    file = Path(given).expanduser() if given else home() / "token"
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def ask_nobody() -> None:
    """From here on no commit is resolved and nothing downloaded: what a command needs is told without a network too."""
    if "offline" not in _said:
        _said["offline"] = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
    os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def online() -> Iterator[Any]:
    """The hub's client, which reads the environment when it is first imported."""
    before = os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        from huggingface_hub import HfApi

        yield HfApi()
    finally:
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


def offline() -> bool:
    """Whether the user's environment keeps the hub's client from the network."""
    return _said.get("offline", False)


def cached(source: Source) -> Path | None:
    """The snapshot of a source's commit in the cache; of the newest one that is there where no commit is known."""
    if source.id is None:
        return None
    folder = hub_cache() / f"{source.kind}s--{source.id.replace('/', '--')}" / "snapshots"
    if source.revision not in (None, UNRESOLVED):
        wanted = folder / str(source.revision)
        return wanted if wanted.is_dir() else None
    there = sorted(folder.glob("*/"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    return there[-1] if there else None
