"""What a folder, a mirror or the hub's cache lacks of what is read there: found out now, and not after hours of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlsafe.errors import VlsafeError
from vlsafe.files import read_json
from vlsafe.sources import Source

LOOKED_AT = 3  # rows of a data set, with their pictures
HEAVY = 200_000_000  # bytes: larger files of rows are not read here, only seen to be there
INDEX = "model.safetensors.index.json"


def lacks(source: Source, folder: Path, owner: Any) -> str:
    """What is wrong with it, in words; empty where nothing is seen to be. `owner` is the component that reads it, placed."""
    if source.kind == "model":
        return model_lacks(folder)
    try:
        if hasattr(owner, "items"):
            owner.items(None if size(folder) < HEAVY else LOOKED_AT)
        elif hasattr(owner, "rows") and size(folder) < HEAVY:
            look_at_rows(owner)
    except (VlsafeError, OSError) as error:
        return str(error).splitlines()[0]
    return ""


def model_lacks(folder: Path) -> str:
    if folder.is_file():
        return ""
    adapters = (folder / "adapter_config.json").exists()
    if not adapters and not (folder / "config.json").exists():
        return "it has no config.json"
    if (folder / INDEX).exists():
        shards = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        gone = [shard for shard in shards if not (folder / shard).exists()]
        return f"{len(gone)} of its {len(shards)} shards are not there, the first is {gone[0]}" if gone else ""
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles:
            return f"its weights are pickled ({pickles[0]}), which is not read: python -m vlsafe.model.convert {folder} OTHER"
        return "it has no weights (*.safetensors)"
    return ""


def look_at_rows(dataset: Any) -> None:
    for purpose in dataset.serves:
        rows = dataset.rows(purpose)
        for index in range(min(LOOKED_AT, len(rows))):
            for picture in rows[index]["images"]:
                _ = picture.size


def size(folder: Path) -> int:
    """Bytes of the files of rows, those of one folder."""
    files = [folder] if folder.is_file() else [path for path in folder.rglob("*.json*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
