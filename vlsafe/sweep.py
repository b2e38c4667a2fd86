"""A sweep's folder and record: `outputs/sweeps/<name>/`. Under one name cells are added; a changed base stops with a diff."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.cells import GROUPS, Cell, RunSettings, make_cell
from vlsafe.errors import ConfigError
from vlsafe.files import read_json, write_json
from vlsafe.lock import held
from vlsafe.stand_in.notice import PREFIX

RECORD = "sweep.json"
# Cells of one sweep may always differ in these; in anything else only where a command sweeps it.
ALWAYS = (
    "model",
    "adaptation",
    "safety_tune",
    "merge",
    "safety_tune.order",
    "seed",
    "adaptation.seed",
    "safety_tune.seed",
    "merge.seed",
)
# Overrides that say where and how, not what: they don't make another sweep.
NOT_IN_NAME = re.compile(
    r"^(sweep|store|outputs|local|stand_in|jobs|threads|device|live|checkpoint_seconds|num_nodes|micro_batch_size|gradient_checkpointing|"
    r"(engine\.)?num_processes|(hydra|tracking|deepspeed)\b.*)$"
)
MAX_NAME = 80


@dataclass(frozen=True)
class Sweep:
    """`axes` are the dotted settings that commands swept, in the order in which they came; `varying` every setting that
    differed among the cells of one command, those that follow from an axis included."""

    name: str
    folder: Path
    cells: tuple[Cell, ...]
    axes: tuple[str, ...]
    varying: tuple[str, ...]

    @property
    def extra_axes(self) -> tuple[str, ...]:
        """Swept settings that have no column of their own in the results."""
        return tuple(
            a
            for a in self.axes
            if a not in ("model", "adaptation", "safety_tune", "merge", "safety_tune.order", "seed", "judge")
        )

    def cell_name(self, cell: Cell) -> str:
        """`llava+sft+ties`, with whatever else varies in this sweep: unique within it and fit for a folder's name."""
        parts = [cell.choices[g] for g in ("adaptation", "safety_tune", "merge")]
        if "model" in self.axes:
            parts.insert(0, cell.choices["model"])
        if len({c.order for c in self.cells}) > 1:
            parts.append(f"order={cell.order}")
        if len({c.seed for c in self.cells}) > 1:
            parts.append(f"seed={cell.seed}")
        if "judge" in self.axes:
            parts.append(cell.choices["judge"])
        parts += [f"{axis}={cell.value(axis)}" for axis in self.extra_axes if cell.value(axis) is not None]
        return re.sub(r"[^\w.+=,-]+", "-", "+".join(parts)).strip("-")


def default_name(overrides: Sequence[str]) -> str:
    """The same overrides, in any order, give the same name: `merge-ties_safety_tune-sft,dpo`."""
    kept = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if not NOT_IN_NAME.match(key):
            kept.append(f"{key}-{value}")
    name = re.sub(r"[^\w.,-]+", "-", "_".join(sorted(kept))).strip("-") or "default"
    if len(name) > MAX_NAME:
        name = name[: MAX_NAME - 9].rstrip("-_,.") + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return name


def sweep_name(run: RunSettings, overrides: Sequence[str]) -> str:
    """As asked, or made from the overrides; that of a sweep on stand-ins says so."""
    name = run.sweep or default_name(overrides)
    check_name(name)
    return PREFIX + name.removeprefix(PREFIX) if run.stand_in else name


def check_name(name: str) -> None:
    if not re.fullmatch(r"[\w][\w.,+=-]{0,127}", name):
        raise ConfigError(f"sweep={name}: a sweep's name has letters, digits and ._,+=- only, and is a folder's name")


def open_sweep(folder: Path, name: str, cells: Sequence[Cell], swept: Sequence[str]) -> Sweep:
    """The sweep that `cells` make with those already under this name; raises `ConfigError` with a diff of the bases."""
    if not cells:
        raise ConfigError("the grid is empty: no cell came out of the overrides")
    axes, varying = list(dict.fromkeys(swept)), set(ALWAYS) | varying_settings(cells) | set(swept)
    old: list[Cell] = []
    if (folder / RECORD).exists():
        record = read_record(folder)
        old = recorded_cells(folder, record)
        axes = list(dict.fromkeys([*record["axes"], *axes]))
        varying |= set(record["varying"])
        check_same_base(name, old, cells, varying)
    unique: dict[str, Cell] = {}  # a cell asked for again keeps its place and runs as asked now
    for cell in [*old, *cells]:
        there = unique.get(identity(cell))
        if there is None or not snapshots(there) or snapshots(cell):  # but results that it has are not dropped
            unique[identity(cell)] = cell
    return Sweep(name, folder, tuple(unique.values()), tuple(axes), tuple(sorted(varying)))


def record_lock(folder: Path) -> AbstractContextManager[None]:
    """Held while a sweep's record is read and written, so that two commands that add cells lose none."""
    return held(folder / ".record.lock")


def read_record(folder: Path) -> Any:
    """Raises `ConfigError` for a record that can't be read."""
    try:
        record = read_json(folder / RECORD)
        if not {"name", "cells", "axes", "varying"} <= set(record):
            raise ValueError("incomplete")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder / RECORD} can't be read ({type(error).__name__}): remove the folder (the store keeps its artifacts) or "
            "choose another name with sweep=NAME"
        ) from error
    return record


def recorded_cells(folder: Path, record: Any) -> list[Cell]:
    """Raises `ConfigError` for a cell that can't be made any more: a package that it needs was uninstalled, for one."""
    try:
        return [make_cell(c["config"], c["choices"]) for c in record["cells"]]
    except ConfigError as error:
        raise ConfigError(
            f"sweep '{folder.name}' has a cell that can't be made here ({error}): install the package that brings it, or choose"
            " another name with sweep=NAME"
        ) from error


def save_record(sweep: Sweep) -> None:
    cells = [{"choices": dict(c.choices), "config": c.config} for c in sweep.cells]
    write_json(sweep.folder / RECORD, {"name": sweep.name, "axes": sweep.axes, "varying": sweep.varying, "cells": cells})


def load_sweep(folder: Path) -> Sweep:
    """Raises `ConfigError` where there is no such sweep."""
    if not (folder / RECORD).exists():
        there = sorted(p.parent.name for p in folder.parent.glob(f"*/{RECORD}")) if folder.parent.is_dir() else []
        raise ConfigError(
            f"no sweep '{folder.name}' in {folder.parent}; there {'are: ' + ', '.join(there) if there else 'is none'}"
        )
    record = read_record(folder)
    return Sweep(record["name"], folder, tuple(recorded_cells(folder, record)), tuple(record["axes"]), tuple(record["varying"]))


def snapshots(cell: Cell) -> bool:
    return bool(cell.components["adaptation"].snapshots())


def identity(cell: Cell) -> str:
    return repr(sorted(cell.flat().items()))


def varying_settings(cells: Sequence[Cell]) -> set[str]:
    """Settings that differ between cells that chose the same option of the setting's group."""
    varying: set[str] = set()
    seen: dict[tuple[str, str], Any] = {}
    for cell in cells:
        for path, value in cell.flat().items():
            group = path.partition(".")[0]
            option = cell.choices.get(group, "") if "." in path else ""
            if seen.setdefault((path, option), value) != value:
                varying.add(path)
    return varying


def check_same_base(name: str, old: Sequence[Cell], new: Sequence[Cell], varying: set[str]) -> None:
    before = _base(old, varying)
    differences = []
    for (path, option), value in _base(new, varying).items():
        if (path, option) in before and before[path, option] != value:
            differences.append(f"{path}: {before[path, option]} there, {value} here")
    if differences:
        shown = "; ".join(sorted(differences)[:6]) + (f"; and {len(differences) - 6} more" if len(differences) > 6 else "")
        raise ConfigError(
            f"sweep '{name}' already has cells with another base ({shown}): choose another name with sweep=NAME, "
            "or sweep the setting (SETTING=A,B) to have both in one table"
        )


def _base(cells: Sequence[Cell], varying: set[str]) -> Mapping[tuple[str, str], Any]:
    base: dict[tuple[str, str], Any] = {}
    for cell in cells:
        for path, value in cell.flat().items():
            group = path.partition(".")[0]
            if path not in varying:
                base[path, cell.choices[group] if group in GROUPS and "." in path else ""] = value
    return base
