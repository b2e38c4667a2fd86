"""Finding 2: safety tuning restores safety (2a), brings over-refusal (2b) and costs helpfulness (2c). Finding 4: adaptation and
tuning at once is worse than one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import BETTER, headline
from vlsafe.report.claims.base import ALL, SAFETY, Claim, Evidence, Outcome, all_of, any_of, compare, reason, verdict
from vlsafe.report.claims.pairs import Variant, cells, labels, options, pairs, seed_of, variant
from vlsafe.report.results import CellResult, Scored

MIXED = "_mixed"  # how a tuning's option is called where it is made for order=joint


class Part(NamedTuple):
    """A part of finding 2: its criterion holds where on every one of `axes` the pooled rate moved with disjoint intervals."""

    name: str
    axes: tuple[Axis, ...]
    moved: Callable[[Evidence], bool | None]
    question: str


PARTS = (
    Part("finding_2a", SAFETY, lambda e: e.falls, "Does tuning ({}) lower ASR, on text and over pictures?"),
    Part("finding_2b", ("over_refusal",), lambda e: e.rises, "Does tuning ({}) bring over-refusal?"),
    Part("finding_2c", ("helpfulness",), lambda e: e.falls, "Does tuning ({}) cost helpfulness?"),
)


def after_adaptation(tuned: CellResult) -> bool:
    return tuned.choices.get("order") == "after"


def tuning_claims(scored: Sequence[Scored]) -> list[Claim]:
    """Three for each adaptation and tuning (order `after`), against the adapted model that the tuning started from. Per seed:
    2a: pooled ASR falls with disjoint intervals on text_safety and on multimodal_safety; 2b: the pooled refusal rate of
    over_refusal rises so; 2c: pooled accuracy falls so."""
    found = pairs(scored, "adapted", "tuned", after_adaptation)
    claims = []
    for made, label in labels((p.made for p in found), "adaptation", "safety_tune").items():
        adaptation, tune = options(made, "adaptation", "safety_tune")
        for part in PARTS:
            outcomes = []
            for p in (p for p in found if p.made == made):
                compared = f"tuned ({tune}{label.removeprefix(f'{adaptation}/{tune}')}) against adapted ({adaptation})"
                rows = tuple(compare(p.seed, compared, p.reference, p.value, axis) for axis in part.axes)
                outcomes.append(Outcome(p.seed, all_of(None if e.missing else part.moved(e) for e in rows), rows))
            question = part.question.format(label)
            claims.append(Claim(f"{part.name}/{label}", 2, question, verdict(outcomes), reason(outcomes), tuple(outcomes)))
    return claims


# Finding 4


def joint_claims(scored: Sequence[Scored]) -> list[Claim]:
    """One for each tuning on both kinds of data at once (order `joint`) that has a sequential counterpart (`after`) of the same
    adaptation, tuning (a suffix `_mixed` aside) and other settings, both unmerged. Per seed: joint is worse with disjoint
    intervals on at least one of the four pooled axes, and better so on none."""
    joint, sequential = _tuned(scored, "joint"), _tuned(scored, "after")
    matched = [(a, b) for a in joint for b in sequential if _alike(a, b)]
    names = labels((a for a, _ in matched), "adaptation", "safety_tune")
    others = labels((b for _, b in matched), "adaptation", "safety_tune")
    claims = []
    for a, b in matched:
        several = sum(a == other for other, _ in matched) > 1
        label = names[a] + (f" against {others[b]}" if several else "")
        compared = f"joint ({options(a, 'safety_tune')[0]}) against sequential ({options(b, 'safety_tune')[0]})"
        seeds = dict.fromkeys([*sequential[b], *joint[a]])
        outcomes = [_outcome(seed, compared, sequential[b].get(seed), joint[a].get(seed)) for seed in seeds]
        question = f"Is adaptation and tuning at once ({label}) worse than one after the other?"
        claims.append(Claim(f"finding_4/{label}", 4, question, verdict(outcomes), reason(outcomes), tuple(outcomes)))
    return claims


def _tuned(scored: Sequence[Scored], order: str) -> dict[Variant, dict[str, list[Scored]]]:
    """Tuned models of this order and with an adaptation, by variant and seed."""
    found: dict[Variant, dict[str, list[Scored]]] = {}
    for roles in cells(scored):
        records = roles.get("tuned", [])
        choices = records[0].result.choices if records else {}
        if choices.get("order") == order and choices.get("adaptation") != "none":
            result = records[0].result
            found.setdefault(variant(result), {}).setdefault(seed_of(result), records)
    return found


def _alike(joint: Variant, sequential: Variant) -> bool:
    """The same but for the order; a setting of the tuning that one of the two does not have is no difference."""
    ours, theirs = dict(joint), dict(sequential)
    ours["safety_tune"] = ours["safety_tune"].removesuffix(MIXED)
    names = {*ours, *theirs} - {"order"}
    one_sided = {name for name in names if name.startswith("safety_tune.") and (name in ours) != (name in theirs)}
    return all(ours.get(name) == theirs.get(name) for name in names - one_sided)


def _outcome(seed: str, compared: str, sequential: list[Scored] | None, joint: list[Scored] | None) -> Outcome:
    if sequential is None or joint is None:
        lack = f"no {'sequential' if sequential is None else 'joint'} model"
        return Outcome(seed, None, (Evidence(seed, compared, "text_safety", "", None, None, lack),))
    rows = tuple(compare(seed, compared, sequential, joint, axis) for axis in ALL)
    worse, better = any_of(_worse(e) for e in rows), any_of(_better(e) for e in rows)
    return Outcome(seed, all_of([worse, None if better is None else not better]), rows)


def _worse(e: Evidence) -> bool | None:
    return None if e.missing else e.rises if BETTER[headline(e.axis)] == "lower" else e.falls


def _better(e: Evidence) -> bool | None:
    return None if e.missing else e.falls if BETTER[headline(e.axis)] == "lower" else e.rises
