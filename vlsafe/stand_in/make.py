"""`+stand_in=tiny`: any command on tiny invented models, data sets and benchmarks, written where the hub's would be read.

A config becomes another one before its cell is made: what is logged is what runs. Every number of a training, of LoRA and of
the evaluation becomes tiny, `local` the folder of stand-ins, and the model's name says so in every table. Keys hold the content
of what is read, so nothing of a stand-in is ever taken for the real thing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlsafe import registry
from vlsafe.cells import GROUPS
from vlsafe.errors import ConfigError, SourceError
from vlsafe.needed import needed
from vlsafe.sources import Source

FOLDER = "stand_in/tiny-1"  # below outputs; another number when the stand-ins change
SUFFIX = ".stand_in"
MOST = {
    "steps": 2, "batch_size": 4, "warmup_steps": 1, "checkpoints": 1, "rank": 4, "alpha": 8, "max_new_tokens": 6,
}  # fmt: skip
MICROWORLD = {
    "width": 32, "layers": 2, "heads": 2, "feed_forward": 64, "tower_width": 32, "tower_layers": 1, "tower_heads": 2,
}  # fmt: skip
LIMIT = 4  # items of a benchmark


def stand_in(config: Mapping[str, Any], choices: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The config and choices of a cell as they run on stand-ins, which are written where they are missing.

    Raises `ConfigError` where a mirror is set too, `SourceError` for a hub id that has no stand-in.
    """
    root = Path(str(config["outputs"])).absolute() / FOLDER
    if config.get("local") not in (None, str(root)):
        raise ConfigError(f"local={config['local']}: stand-ins are a mirror of their own; leave out local, or +stand_in")
    small = {name: cut(value) for name, value in config.items()}
    small |= {
        "local": str(root), "num_processes": None, "num_nodes": 1, "micro_batch_size": None,
        "deepspeed": {"name": "none"}, "tracking": {"name": "none"},
    }  # fmt: skip
    small["eval"] = {**small["eval"], "limit": min(small["eval"].get("limit") or LIMIT, LIMIT)}
    small["engine"] = {**small["engine"], **{n: 1 for n in ("num_processes",) if n in small["engine"]}}
    if small["model"].get("name") == "microworld":
        small["model"] = {**small["model"], **MICROWORLD}
    root.mkdir(parents=True, exist_ok=True)
    components = {group: registry.make(group, small[group]) for group in GROUPS}
    for where, source, _ in needed(components):
        if source.folder is None:
            write(source, root, where)
    named = {**choices, "deepspeed": "none", "tracking": "none"}
    named["model"] = choices["model"].removesuffix(SUFFIX) + SUFFIX
    return small, named


def cut(value: Any) -> Any:
    """A copy of a config's part in which no number of `MOST` is above its value there."""
    if isinstance(value, Mapping):
        return {name: _least(str(name), cut(item)) for name, item in value.items()}
    return [cut(item) for item in value] if isinstance(value, list) else value


def _least(name: str, value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return min(value, MOST[name]) if number and name in MOST else value


def write(source: Source, root: Path, where: str) -> None:
    """The stand-in of a hub id, whole or not at all; several commands may write it at once."""
    target = root / str(source.id)
    if target.exists():
        return
    known = writers()
    if source.id not in known:
        raise SourceError(f"{where}: there is no stand-in of {source.id}; set a folder of your own, or leave out +stand_in")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for writer in known[str(source.id)]:
            writer(made)
        try:
            made.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(made)  # another command was faster


def writers() -> dict[str, list[Callable[[Path], Any]]]:
    """hub id → what writes its stand-in: one repository may hold a data set and a benchmark."""
    from vlsafe.stand_in.benchmarks import BENCHMARKS
    from vlsafe.stand_in.models import MODELS
    from vlsafe.stand_in.sets import SETS

    found: dict[str, list[Callable[[Path], Any]]] = {}
    for known in (MODELS, SETS, BENCHMARKS):
        for id, writer in known.items():
            found.setdefault(id, []).append(writer)
    return found
