"""docs/presets.md: each preset for real models as a table of settings, values and where they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlsafe.presets.origins import TAGGED_GROUPS, Composed, Setting, compose
from vlsafe.report.text import markdown

COMMAND = "python -m vlsafe.presets --write docs/presets.md"
INTRODUCTION = f"""# Presets

A preset is `+experiment=NAME` and may be combined with any other override:

    python launch/train.py -m +experiment=paper_llama2 safety_tune=sft,dpo merge=linear,ties

`launch/doctor.py` with the same overrides says what is missing here to run it, without a GPU or a network. With
`+stand_in=tiny` the same command runs on tiny invented models and data, within a minute or two: it shows that the way is open,
and no figure of it means anything.

Under each, every setting says where its value comes from:

- `paper`: the study states it (Lee et al., *How Does Vision-Language Adaptation Impact the Safety of Vision Language Models?*,
  ICLR 2025, arXiv 2410.07571).
- `source: NAME`: a published recipe that is not the study's, named.
- `ours`: chosen here.

This page is generated from the comments in `conf/` (`{COMMAND}`).
"""


def presets(conf: Path) -> list[str]:
    return [file.stem for file in sorted((conf / "experiment").glob("*.yaml"))]


def for_real_models(conf: Path, preset: str) -> bool:
    return bool(re.search(r"override /recipes: ", (conf / "experiment" / f"{preset}.yaml").read_text("utf-8")))


def families(conf: Path) -> list[str]:
    """What `recipes` can be, the microworld aside: folders with what options of adaptation and safety_tune then are."""
    return [folder.name for folder in sorted((conf / "recipes").iterdir()) if folder.is_dir()]


def render(conf: Path) -> str:
    real = [name for name in presets(conf) if for_real_models(conf, name)]
    parts = [INTRODUCTION]
    for name in real:
        parts += [
            f"## {name}\n",
            about(conf / "experiment" / f"{name}.yaml"),
            preset_tables(compose(conf, [f"+experiment={name}"])),
        ]
    parts += ["## What the options are on real models\n", OPTIONS]
    for family in families(conf):
        for file in sorted((conf / "recipes" / family).glob("*/*.yaml")):
            parts += option_table(conf, family, file.parent.name, file.stem)
    parts += ["## Merging\n", "The same on any model. Weights and roles are settings like any other.\n"]
    for method in sorted(file.stem for file in (conf / "merge").glob("*.yaml") if file.stem != "none"):
        found = compose(conf, [f"merge={method}"]).of("merge")
        parts += [f"### merge={method}\n", about(conf / "merge" / f"{method}.yaml"), table(row(s) for s in found if wanted(s))]
    parts += ["## On the microworld\n"]
    small = [name for name in presets(conf) if name not in real]
    parts.append("".join(f"- `{name}`: {about(conf / 'experiment' / f'{name}.yaml')}" for name in small))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


OPTIONS = """The names of `adaptation` and `safety_tune` are those of the microworld; a preset's `recipes` says what they mean:
`recipes: real` makes them published recipes, `recipes: laptop` the same cut down. An option with a recipe's own name
(`safety_tune=spa_vl_dpo`) is that recipe everywhere. Whoever composes a real model without a preset adds `recipes=real`,
or sets learning rates: a real model with those of the microworld is refused.
"""


def about(file: Path) -> str:
    """The comment that a file begins with, what is unknown aside."""
    said = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "# unknown:")):
            said.append(line.removeprefix("#").strip())
    return " ".join(said) + "\n"


def preset_tables(composed: Composed) -> str:
    rows = [row(choice) for choice in composed.choices.values()]
    shown = [s for s in composed.settings if described(composed, s.path.partition(".")[0]) and wanted(s)]
    run = [s for s in composed.settings if "." not in s.path and s.tag]
    return table([*rows, *(row(s) for s in [*run, *shown])]) + unknown(composed.unknown)


def option_table(conf: Path, family: str, group: str, option: str) -> list[str]:
    composed = compose(conf, [f"recipes={family}", f"{group}={option}"])
    recipe = conf / "recipes" / family / group / f"{option}.yaml"
    return [
        f"### {group}={option} under recipes={family}\n",
        about(recipe),
        table(row(s) for s in composed.of(group) if wanted(s)) + unknown(unknown_of(conf, composed.of(group))),
    ]


def unknown_of(conf: Path, settings: Sequence[Setting]) -> tuple[str, ...]:
    from vlsafe.presets.origins import UNKNOWN

    files = dict.fromkeys(s.file for s in settings if s.file)
    return tuple(dict.fromkeys(u for file in files for u in UNKNOWN.findall((conf / f"{file}.yaml").read_text("utf-8"))))


def described(composed: Composed, group: str) -> bool:
    """A group whose choice has settings that act; merges have a part of their own."""
    return group in TAGGED_GROUPS and group != "merge" and composed.options.get(group) != "none"


def wanted(setting: Setting) -> bool:
    return not setting.path.endswith(".name")


def row(setting: Setting) -> tuple[str, str, str]:
    return f"`{setting.path}`", value(setting.value), markdown(setting.said) or "not said"


def value(given: Any) -> str:
    if isinstance(given, float):
        return f"{given:g}"
    if isinstance(given, (list, tuple)):
        return markdown(", ".join(map(str, given)) or "(none)")
    return markdown("null" if given is None else str(given).lower() if isinstance(given, bool) else str(given))


def table(rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (("setting", "value", "from"), (":---", ":---", ":---"), *rows))


def unknown(said: Sequence[str]) -> str:
    return "\nNot known of the study:\n\n" + "".join(f"- {markdown(line)}\n" for line in said) if said else ""
