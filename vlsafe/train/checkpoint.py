"""What a training stage leaves in its work folder, so that a kill at any moment loses little and changes nothing.

<work>/<i>-<phase>/checkpoint-<step>/   the trainer's checkpoint; counts only with `complete.json`, which is written last
<work>/<i>-<phase>/log.jsonl            one line a step
<work>/<i>-<phase>/final.safetensors    a finished phase's weights; count only with `done.json`
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlsafe.files import files_below, read_json, sync_folder, write_json

MARKER = "complete.json"


def seal(checkpoint: Path) -> None:
    """Make a checkpoint count: its files reach the disk, then the marker with their sizes, then older ones go."""
    sizes = {}
    for name in files_below(checkpoint):
        sync_file(checkpoint / name)
        sizes[str(name)] = (checkpoint / name).stat().st_size
    sync_folder(checkpoint)
    write_json(checkpoint / MARKER, sizes)
    sync_folder(checkpoint)
    sync_folder(checkpoint.parent)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The latest complete checkpoint; incomplete ones are removed."""
    found: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if is_complete(checkpoint):
            found.append((int(checkpoint.name.rpartition("-")[2]), checkpoint))
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(found)[1] if found else None


def is_complete(checkpoint: Path) -> bool:
    try:
        sizes = read_json(checkpoint / MARKER)
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_log(file: Path, up_to: int) -> list[dict[str, Any]]:
    """The lines of the steps 1 to `up_to`; a torn last line is ignored."""
    lines: list[dict[str, Any]] = []
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if line["step"] > up_to:
                break
            lines.append(line)
    return lines


def write_log(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
