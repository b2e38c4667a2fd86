"""Whether the local files that a stage reads are still those that its key names: hours may lie between a plan and its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlsafe import registry
from vlsafe.errors import SourceError
from vlsafe.fingerprint import forget
from vlsafe.sources import sources_of


def contents_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of the local files and folders that a stage's components read: what stands for each in its key, by path."""
    found: dict[str, str] = {}
    for group, value in settings.items():
        if isinstance(value, Mapping) and "name" in value:
            for _, source in sources_of(registry.make(group, value)):
                if source.path is not None and source.path.exists():
                    found[str(source.path)] = source.content(source.path)
    return found


def check_unchanged(contents: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Raises `SourceError` where files are others than they were when the stage was planned, as `contents` says."""
    if not contents:
        return
    forget()
    now = contents_of(settings)
    changed = [path for path in contents if now.get(path) != contents[path]]
    if changed:
        raise SourceError(
            f"{', '.join(changed)}: has changed since the stage was planned, and its key stands for what was there: give the"
            " same command again, which plans with what is there now"
        )
