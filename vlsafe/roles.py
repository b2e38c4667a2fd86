"""Which models a cell has, what each is made from, and which two a merge takes by default.

| order  | chain                                   | pair             | unmerged |
|--------|-----------------------------------------|------------------|----------|
| after  | base → adapted → tuned                  | (adapted, tuned) | tuned    |
| before | base → tuned → adapted                  | (tuned, adapted) | adapted  |
| joint  | base → tuned on both kinds of data      | (base, tuned)    | tuned    |

Without safety tuning the pair is (base, adapted), without adaptation (base, tuned), without either (base, base). Where the
model offers it, the language model before its alignment is a role too: `unaligned`, which `base` is made from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vlsafe.errors import ConfigError
from vlsafe.settings import closest

Order = Literal["after", "before", "joint"]


@dataclass(frozen=True)
class Role:
    name: str
    parent: str | None  # the role it was made from
    stage: str  # the kind of stage that makes it
    sees_images: bool  # its projector is trained, so picture benchmarks mean something
    joint: bool = False  # tuned on the adaptation's data and on safety data at once


@dataclass(frozen=True)
class RoleTable:
    roles: tuple[Role, ...]  # in the order in which they are made, without `merged`
    pair: tuple[str, str]
    unmerged: str  # the cell's last model before a merge

    def __getitem__(self, name: str) -> Role:
        for role in self.roles:
            if role.name == name:
                return role
        raise ConfigError(f"this cell has no role '{name}'; {closest(name, [r.name for r in self.roles])}")


BASE = Role("base", None, "model", sees_images=False)
UNALIGNED = Role("unaligned", None, "model", sees_images=False)


def role_table(adapts: bool, tunes: bool, order: Order, unaligned: bool = False) -> RoleTable:
    """`unaligned`: the model offers its language model before alignment."""
    table = _role_table(adapts, tunes, order)
    if not unaligned:
        return table
    return replace(table, roles=(UNALIGNED, replace(BASE, parent="unaligned"), *table.roles[1:]))


def _role_table(adapts: bool, tunes: bool, order: Order) -> RoleTable:
    if adapts and tunes and order == "joint":
        return RoleTable((BASE, Role("tuned", "base", "safety_tune", True, joint=True)), ("base", "tuned"), "tuned")
    if adapts and tunes and order == "before":
        tuned = Role("tuned", "base", "safety_tune", False)
        return RoleTable((BASE, tuned, Role("adapted", "tuned", "adaptation", True)), ("tuned", "adapted"), "adapted")
    if adapts and tunes:
        adapted = Role("adapted", "base", "adaptation", True)
        return RoleTable((BASE, adapted, Role("tuned", "adapted", "safety_tune", True)), ("adapted", "tuned"), "tuned")
    if adapts:
        return RoleTable((BASE, Role("adapted", "base", "adaptation", True)), ("base", "adapted"), "adapted")
    if tunes:
        return RoleTable((BASE, Role("tuned", "base", "safety_tune", False)), ("base", "tuned"), "tuned")
    return RoleTable((BASE,), ("base", "base"), "base")
