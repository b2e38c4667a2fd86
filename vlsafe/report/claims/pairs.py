"""Which models are compared with which: two roles of one cell, each pair once however many cells share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from vlsafe.report.aggregate import Setting, making, seeds
from vlsafe.report.results import CellResult, Scored

Variant = tuple[Setting, ...]  # what is claimed of: the settings of a model without seeds, and the judge


class Pair(NamedTuple):
    reference: Sequence[Scored]
    value: Sequence[Scored]
    origin: Variant  # of the reference
    made: Variant  # of the value
    origin_seed: str
    seed: str


def cells(scored: Iterable[Scored]) -> list[dict[str, list[Scored]]]:
    """Each cell's final models' records by role, judge by judge; checkpoints during training are left out."""
    found: dict[tuple[str, str], dict[str, list[Scored]]] = {}
    for s in scored:
        if s.result.step is None:
            found.setdefault((s.result.cell, judge(s.result)), {}).setdefault(s.result.role, []).append(s)
    return list(found.values())


def pairs(scored: Iterable[Scored], reference: str, value: str, where: Callable[[CellResult], bool]) -> list[Pair]:
    """Pairs of the two roles in all cells that have both and that `where` takes. Seeds with one and the same pair are one."""
    found: dict[frozenset[str], list[Pair]] = {}
    for roles in cells(scored):
        if reference in roles and value in roles and where(roles[value][0].result):
            before, after = roles[reference], roles[value]
            keys = frozenset(s.result.key for s in [*before, *after])
            first, last = before[0].result, after[0].result
            pair = Pair(before, after, variant(first), variant(last), seed_of(first), seed_of(last))
            found.setdefault(keys, []).append(pair)
    return [
        same[0]._replace(
            seed=", ".join(dict.fromkeys(p.seed for p in same)),
            origin_seed=", ".join(dict.fromkeys(p.origin_seed for p in same)),
        )
        for same in found.values()
    ]


def variant(result: CellResult) -> Variant:
    return (*making(result), ("judge", judge(result)))


def judge(result: CellResult) -> str:
    return f"{result.judge} v{result.judge_version}"


def seed_of(result: CellResult) -> str:
    """'0', or where a sweep varies several seeds 'seed=0, model.seed=1'."""
    found = seeds(result)
    return found[0][1] if len(found) == 1 else ", ".join(f"{name}={value}" for name, value in found)


def options(of: Variant, *names: str) -> tuple[str, ...]:
    return tuple(dict(of).get(name, "") for name in names)


def labels(variants: Iterable[Variant], *names: str) -> Mapping[Variant, str]:
    """A name for each: the options of `names` (`llava/sft`), then in brackets every other setting in which they differ."""
    distinct = list(dict.fromkeys(variants))
    others = dict.fromkeys(name for v in distinct for name, _ in v if name not in names)
    differ = [name for name in others if len({dict(v).get(name) for v in distinct}) > 1]
    made = {}
    for v in distinct:
        more = ", ".join(f"{name}={dict(v)[name]}" for name in differ if name in dict(v))
        made[v] = "/".join(options(v, *names)) + (f"[{more}]" if more else "")
    return made
