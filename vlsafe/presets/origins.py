"""Each setting of a composed preset with the comment of the line that set it: `paper`, `source: NAME` or `ours`, and why.

    steps: 5198  # source: LLaVA-1.5, one epoch of 665,298 conversations

The files and their order are Hydra's own list of what it composes, so a value and its comment come from the same line. A comment
on a mapping's line holds for all in it. Lines `# unknown: …` of the files say what is not known of the study.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlsafe.cells import GROUPS, flatten

TAG = re.compile(r"(paper|source|ours)\b")
UNKNOWN = re.compile(r"^# unknown: (.+)$", re.MULTILINE)
TAGGED_GROUPS = tuple(group for group in GROUPS if group not in ("tracking", "analysis"))


@dataclass(frozen=True)
class Setting:
    """`said` is the comment without its #, empty where there is none; `file` is below conf/."""

    path: str
    value: Any
    said: str
    file: str

    @property
    def tag(self) -> str | None:
        found = TAG.match(self.said)
        return found[1] if found else None


@dataclass(frozen=True)
class Composed:
    """One cell of a preset: each group's option, those that a preset's defaults list chose, every setting, and what its files
    call unknown."""

    options: Mapping[str, str]
    choices: Mapping[str, Setting]
    settings: tuple[Setting, ...]
    unknown: tuple[str, ...]

    def of(self, group: str) -> list[Setting]:
        return [s for s in self.settings if s.path.startswith(f"{group}.")]


def compose(conf: Path, overrides: Sequence[str]) -> Composed:
    """The first cell of the command with these overrides, without sweeping anything."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from vlsafe.hydra_plugins import register_plugins

    register_plugins()
    with hydra.initialize_config_dir(config_dir=str(conf.absolute()), version_base="1.3"):
        config = hydra.compose("config", list(overrides), return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        files = loader.compute_defaults_list("config", list(overrides), RunMode.RUN).defaults
    chosen = {str(k): str(v) for k, v in config.hydra.runtime.choices.items()}
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), resolve=True)
    assert isinstance(plain, dict)
    said: dict[str, tuple[str, str]] = {}
    choices: dict[str, Setting] = {}
    unknown: dict[str, None] = {}
    for default in files:
        path = str(default.config_path)
        file = conf / f"{path}.yaml"
        if not file.is_file():  # Hydra's own, or the sweeper's settings that stand in no file
            continue
        text = file.read_text("utf-8")
        unknown |= dict.fromkeys(UNKNOWN.findall(text))
        for name, comment in comments(text):
            whole = f"{default.package}.{name}" if default.package else name
            for below in [n for n in said if n.startswith(f"{whole}.")]:
                del said[below]
            said[whole] = comment, path
        for group, comment in choices_in(text):
            if group in chosen:
                choices[group] = Setting(group, chosen[group], comment, path)
    settings = [Setting(name, value, *said.get(name, ("", ""))) for name, value in flatten_all(plain)]
    return Composed(chosen, choices, tuple(settings), tuple(unknown))


def flatten_all(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield from flatten(value, str(name)).items()


def comments(text: str) -> Iterator[tuple[str, str]]:
    """(dotted name, comment) of each value in a YAML file, the defaults list aside."""
    import yaml  # type: ignore[import-untyped]

    lines = text.splitlines()
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value != "defaults":
                yield from _comments(key, value, key.value, lines, "")


def _comments(key: Any, value: Any, path: str, lines: Sequence[str], above: str) -> Iterator[tuple[str, str]]:
    import yaml

    own = _comment(lines[key.start_mark.line]) or above
    if isinstance(value, yaml.MappingNode) and value.value:
        for inner, item in value.value:
            yield from _comments(inner, item, f"{path}.{inner.value}", lines, own)
    else:
        yield path, own


def choices_in(text: str) -> Iterator[tuple[str, str]]:
    """(group, comment) of each option that a preset's defaults list chooses."""
    for line in text.splitlines():
        found = re.match(r"\s*- override /(\w+): \S+", line)
        if found:
            yield found[1], _comment(line)


def _comment(line: str) -> str:
    found = re.search(r"(?:^|\s)#\s*(.*)$", line)
    return found[1].strip() if found else ""
