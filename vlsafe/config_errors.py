"""Hydra's and OmegaConf's errors in one line each: what was wrong, and the nearest thing that exists."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

from vlsafe import registry
from vlsafe.cells import GROUPS, RunSettings
from vlsafe.errors import VlsafeError
from vlsafe.plugins import owner
from vlsafe.settings import closest, settings_of


def explain(error: Exception) -> str:
    text = str(error)
    if match := re.search(r"Could not find '([\w/-]+)/([^'/]*)'", text):
        group, option = match.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        if package := registered_by(group, option):
            lacks = f"package {package} registers it, but ships no conf/{group}/{option}.yaml"
            return f"{group}={option}: {lacks}; add one, or set hydra.searchpath"
        return f"{group}={option}: no such option; {closest(option, options)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"{match[1]}: {unknown_setting(match[1])}"
    if match := re.search(r"An item is already at '([^']+)'", text):
        return f"+{match[1]}: there is such a setting already; write it without the plus"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: --cfg and the like show a single cell; give one value"
    if match := re.search(r"Multiple values for ([\w/]+)\.", text):
        return f"+{match[1]}: there is such a group already; write it without the plus"
    if match := re.search(r"Interpolation key '([^']+)' not found[\s\S]*?full_key: (\S+)", text):
        return (
            f"{match[2]} follows {match[1]}, which the chosen {match[1].partition('.')[0]} doesn't have: "
            f"choose a {match[2].partition('.')[0]} that goes with it, or a preset (+experiment=NAME)"
        )
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]}: must be set"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def registered_by(group: str, name: str) -> str | None:
    """The package of the plug-in that registers a component of this name."""
    try:
        plugin = owner(registry.get(group, name).__module__)
    except VlsafeError:
        return None
    return plugin.package if plugin else None


def unknown_setting(path: str) -> str:
    """`unknown setting; did you mean 'density'?`"""
    group, _, rest = path.partition(".")
    if path.startswith("hydra.launcher."):
        return unknown_launcher_setting(path.removeprefix("hydra.launcher."))
    if path == "experiment":
        return "write +experiment=NAME, with a plus"
    if group not in GROUPS:
        known = [f.name for f in dataclasses.fields(RunSettings)]
        return f"unknown setting; {closest(path, [*known, *GROUPS])}"
    if not rest:
        return "unknown setting"
    try:
        options = {f.name for name in registry.names(group) for f in dataclasses.fields(registry.get(group, name))}  # type: ignore[arg-type]
    except VlsafeError:
        options = set()
    name, _, inner = rest.partition(".")
    if name in options:
        owners = [n for n in registry.names(group) if name in {f.name for f in dataclasses.fields(registry.get(group, n))}]  # type: ignore[arg-type]
        whole = f"; where {name} is null, set all of it: {group}.{name}={{...}}" if inner else ""
        return f"the chosen {group} has no setting '{rest}' (it belongs to {', '.join(owners)}){whole}"
    return f"unknown setting; {closest(name, sorted(options))}"


def unknown_launcher_setting(path: str) -> str:
    """`hydra/launcher=local` has none; those of `slurm` are nested."""
    from vlsafe.cluster.settings import SlurmSettings

    options: Any = settings_of(SlurmSettings())
    if "hydra/launcher=slurm" not in sys.argv and path.partition(".")[0] in options:
        return "only hydra/launcher=slurm has it"
    for name in path.split("."):
        if not isinstance(options, dict) or name not in options:
            return f"unknown setting; {closest(name, sorted(options) if isinstance(options, dict) else [])}"
        options = options[name]
    return "unknown setting"
