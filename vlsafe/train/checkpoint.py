"""What a training stage leaves in its work folder, so that a kill at any moment loses little and changes nothing.

<work>/<i>-<phase>/checkpoint-<step>/      trained weights, the trainer's state, the log so far; count only with `complete.json`
<work>/<i>-<phase>/log.jsonl               one line a step
<work>/<i>-<phase>/final.safetensors       a finished phase's weights; they and its log count only with `done.json`
<work>/<i>-<phase>/encoded-<rank>.*        its rows as ids, until it ends; count only with `encoded.json`
<work>/<i>-<phase>/reference.safetensors   log-probabilities of the reference (DPO, KTO); count only with `reference.json`

Each marker is written last and holds the sha256 of the files it stands for, and of itself. What was damaged since is told on
stderr and dropped; training then goes on from before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vlsafe.files import files_below, read_json, sha256, sync, write_json

MARKER = "complete.json"


class Checkpoint(NamedTuple):
    path: Path
    step: int
    seconds: float  # spent on the stage until then, over all tries that it builds on


def mark(marker: Path, names: Iterable[str], **more: Any) -> None:
    """Make the files `names` beside `marker` count: they reach the disk, then the marker with their sha256 and `more`."""
    sums = {}
    for name in names:
        sync(marker.parent / name)
        sums[name] = sha256(marker.parent / name)
    sync(marker.parent)
    content = {"sha256": sums, **more}
    write_json(marker, {**content, "itself": digest(content)})
    sync(marker.parent)


def verified(marker: Path) -> dict[str, Any] | None:
    """What `marker` holds. None without one, or where a file isn't what was written: that is told, and the marker goes."""
    if not marker.exists():
        return None
    try:
        content: dict[str, Any] = read_json(marker)
        sound = content.pop("itself") == digest(content)
        wrong = [] if sound else [marker.name]
        wrong += [name for name, sum in content["sha256"].items() if sound and sha256(marker.parent / name) != sum]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = [f"{marker.name} ({type(error).__name__})"]
    if not wrong:
        return content
    print(f"{marker.parent}: damaged since it was written, so dropped: {', '.join(wrong)}", file=sys.stderr)
    marker.unlink(missing_ok=True)
    return None


def digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal(checkpoint: Path, seconds: float, layout: str = "whole") -> None:
    """Make a checkpoint count; then older ones go. `layout`: what it can be read by (`Way.layout`)."""
    mark(checkpoint / MARKER, map(str, files_below(checkpoint)), seconds=seconds, layout=layout)
    sync(checkpoint.parent)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def newest(folder: Path, layout: str = "whole") -> Checkpoint | None:
    """The latest checkpoint that is complete, undamaged and of this layout; later ones are removed."""
    for step, path in sorted(((int(c.name.rpartition("-")[2]), c) for c in folder.glob("checkpoint-*")), reverse=True):
        marked = verified(path / MARKER)
        if marked is not None and marked.get("layout", "whole") == layout:
            return Checkpoint(path, step, marked["seconds"])
        if marked is not None:
            print(f"{path}: written by {marked['layout']}, which {layout} can't read, so dropped", file=sys.stderr)
        shutil.rmtree(path, ignore_errors=True)
    return None


def finished_phases(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The content of `done.json` of the first phases, as far as all are undamaged; what was built on later is removed."""
    found: list[dict[str, Any]] = []
    remaining = iter(folders)
    for folder in remaining:
        marked = verified(folder / "done.json")
        if marked is None:
            break
        found.append(marked)
    for folder in remaining:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def read_log(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_log(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
