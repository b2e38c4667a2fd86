"""What the report says of how it was made: settings that models share and those in which they differ, and where they ran."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlsafe.report.live import clock
from vlsafe.report.results import plain
from vlsafe.report.source import StageFacts
from vlsafe.stage import STAGE_KINDS, TRAINING_KINDS

MADE = ("model", "adaptation", "safety_tune", "merge")  # stages whose settings are recipes
ASKED = {
    "model": "Language model and vision tower",
    "adaptation": "Adaptation",
    "safety_tune": "Safety tuning",
    "merge": "Merging",
}


@dataclass(frozen=True)
class Recipes:
    """One kind of stage: what all have in common, and a row for each with what differs."""

    title: str
    common: tuple[tuple[str, str], ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Times:
    kind: str
    stages: int
    total: str
    longest: str
    first: str
    last: str


def recipes(stages: Sequence[StageFacts]) -> list[Recipes]:
    found = []
    for kind in MADE:
        own = [s for s in stages if s.kind == kind]
        if own:
            found.append(_recipes(kind, own))
    return found


def _recipes(kind: str, own: Sequence[StageFacts]) -> Recipes:
    names = list(dict.fromkeys(name for s in own for name in s.settings))
    common = [n for n in names if len({repr(s.settings.get(n)) for s in own}) == 1]
    differ = [n for n in names if n not in common]
    if len(own) == 1:
        common, differ = names, []
    rows = tuple(
        (s.label, *(_shown(s.settings, n) for n in differ), took(s.seconds) if s.seconds is not None else "", s.key)
        for s in own
    )
    shared = tuple((n, _shown(own[0].settings, n)) for n in common)
    return Recipes(ASKED[kind], shared, ("model", *differ, "took", "key"), rows)


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return "null" if name in settings and settings[name] is None else plain(settings.get(name))


def questions(stages: Sequence[StageFacts]) -> list[tuple[str, str]]:
    """How answers were made and judged: the settings of `generate` and `judge`, all values of a name where they differ."""
    values: dict[str, dict[str, None]] = {}
    for s in stages:
        if s.kind in ("generate", "judge"):
            for name in s.settings:
                values.setdefault(name, {})[_shown(s.settings, name)] = None
            if s.template:
                values.setdefault("template", {})[s.template] = None
    return [(name, _listed(v)) for name, v in values.items()]


def surroundings(stages: Sequence[StageFacts]) -> list[tuple[str, str]]:
    """Where stages ran and with what: all values of a name where they differ."""
    values: dict[str, dict[str, None]] = {}
    for s in stages:
        said = {"python": s.python, "platform": s.platform, "device": s.device, "code": s.code}
        threads = {f"threads of {s.kind}": str(s.threads)} if s.threads is not None and s.kind in MADE else {}
        processes = {f"processes of {s.kind}": s.processes} if s.kind in TRAINING_KINDS else {}
        for name, value in {**said, **threads, **processes, **s.packages}.items():
            if value:
                values.setdefault(name, {})[value] = None
    return [(name, _listed(v)) for name, v in values.items()]


def times(stages: Sequence[StageFacts]) -> list[Times]:
    found = []
    for kind in STAGE_KINDS:
        own = [s for s in stages if s.kind == kind]
        seconds = [s.seconds for s in own if s.seconds is not None]
        started = sorted(s.started for s in own if s.started)
        if own:
            total, longest = (took(sum(seconds)), took(max(seconds))) if seconds else ("", "")
            first, last = (started[0], started[-1]) if started else ("", "")
            found.append(Times(kind, len(own), total, longest, first, last))
    return found


def _listed(values: Iterable[str], most: int = 12) -> str:
    shown = list(values)
    return " or ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)
