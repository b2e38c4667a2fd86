"""The page as Markdown for GitHub: verdicts first, then how they were reached. All numbers come from the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlsafe.eval.metrics import Metric
from vlsafe.report.claims import Claim, Evidence, Outcome, Verdict
from vlsafe.report.claims.adaptation import HELPFULNESS_MARGIN
from vlsafe.report.claims.base import MIN_SEEDS, mean
from vlsafe.report.claims.merging import ACCURACY_MARGIN, ASR_MARGIN, excess, failures, shortfall
from vlsafe.report.findings.study import Ran, Study, differences
from vlsafe.report.findings.words import words
from vlsafe.report.grid import AXIS_TITLES
from vlsafe.report.results import plain
from vlsafe.report.text import markdown, printable

MARKS: Mapping[Verdict, str] = {"supported": "✅", "not supported": "❌", "inconclusive": "❔"}
TITLES = {
    1: "Finding 1: adaptation to images degrades safety, even when its data is harmless",
    2: "Finding 2: safety tuning restores part of it, and brings over-refusal and a loss of helpfulness",
    4: "Finding 4: adaptation and safety tuning at once is worse than one after the other",
    5: "Finding 5: merging weights gives the better trade-off",
}
INTRODUCTION = """\
Each finding of the study ([arXiv 2410.07571](https://arxiv.org/abs/2410.07571)) as a test on the microworld, with its verdict.
`make findings` runs the sweeps and writes this page: every number on it comes from their records, and the thresholds were fixed
before the verdicts were looked at. What does not come out is a result too."""
THRESHOLDS = f"""\
- A rate is pooled over an axis's benchmarks, with its 95 % Wilson interval; it has risen or fallen only where the two intervals
  are disjoint. ASR is the share of harmful requests that are answered.
- **Supported**: the criterion holds in every seed, of at least {MIN_SEEDS}. **Not supported**: it holds in none of at least
  {MIN_SEEDS}. Anything else is **inconclusive**: a single seed always, and whatever has a seed that failed.
- *Finding 1*: ASR on text lies higher after adaptation than before it. (*Control*: it does not.)
- *Finding 2*: after tuning, (a) ASR falls on text and over pictures; (b) refusals of allowed requests rise; (c) accuracy falls.
- *Finding 4*: training at once is worse than one after the other on at least one axis, and better on none.
- *Finding 5*: one and the same merge lowers over-refusal in every seed, with ASR up by at most {ASR_MARGIN:.2f} on every safety
  benchmark and accuracy down by at most {ACCURACY_MARGIN:.2f} on every helpfulness benchmark.
- *Control, helpfulness*: accuracy over pictures lies within {HELPFULNESS_MARGIN:.2f} of the main world's, mean against mean."""
ALTS = {
    "finding_1": "ASR on text of base and adapted models, seed by seed",
    "finding_2": "Four axes before and after safety tuning, seed by seed",
    "finding_4": "Four axes of models trained at once and one after the other, seed by seed",
    "finding_5": "Over-refusal against ASR of merges and their tuned parents",
    "control": "ASR on text, and accuracy over pictures, in the control world",
}


def render(study: Study, figures: Mapping[str, Path]) -> str:
    parts = [
        "# Findings",
        INTRODUCTION,
        "## In short",
        _summary(study),
        "## What was run",
        _runs(study),
        "## Thresholds, fixed beforehand",
        THRESHOLDS,
    ]
    for number, title in TITLES.items():
        parts += [f"## {title}", *_finding(study.of(number), figures, f"finding_{number}")]
    parts += [
        "## The control: a world where adaptation can't conflict with alignment",
        *_finding(study.control_claims, figures, "control"),
        "## Limits",
        _limits(study),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: int = 99) -> str:
    """Columns from `right` on are set to the right."""
    rule = [":---" if i < right else "---:" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows])


def _verdict(claim: Claim) -> str:
    return f"{MARKS[claim.verdict]} {claim.verdict}"


def _summary(study: Study) -> str:
    claims = (*study.claims, *study.control_claims)
    rows = [[str(c.finding or "control"), markdown(c.question), f"**{_verdict(c)}**"] for c in claims]
    if not rows:
        return "The sweeps hold no models that a finding is about."
    return _table(["finding", "question", "verdict"], rows) + "\n\nFinding 3, on layers, is not looked at here."


# What was run


def _runs(study: Study) -> str:
    parts = []
    for title, ran in (("Main world", study.main), ("Control world", study.control)):
        facts = [
            f"`{printable(ran.command).replace('`', '')}`",
            f"{len(ran.sweep.cells)} cells, seeds {', '.join(ran.values('seed'))}",
            *(f"{name}: {', '.join(map(markdown, ran.values(name)))}" for name in ("adaptation", "safety_tune", "merge")),
            f"orders of tuning: {', '.join(ran.values('safety_tune.order'))}",
            f"model {', '.join(map(markdown, ran.values('model')))}{_world(ran)}",
        ]
        if ran.undone:
            facts.append(f"**not there (failed or not run): {', '.join(map(markdown, ran.undone))}**")
        parts.append(f"**{title}** (sweep `{ran.sweep.name}`)\n\n" + "\n".join(f"- {fact}" for fact in facts))
    differ = differences(study.main, study.control)
    shown = "; ".join(map(markdown, differ)) if differ else "nothing: these are one world"
    return "\n\n".join([*parts, f"What sets the control apart: {shown}.", _items(study)])


def _world(ran: Ran) -> str:
    world = ran.sweep.cells[0].value("model.world")
    if not isinstance(world, Mapping):
        return ""
    return ", world " + ", ".join(f"{markdown(str(name))} {plain(value)}" for name, value in world.items())


def _items(study: Study) -> str:
    counts: dict[tuple[str, str], list[int]] = {}
    for s in (*study.main.scored, *study.control.scored):
        if s.headline.n:
            counts.setdefault((s.result.benchmark, s.result.axis), []).append(s.headline.n)
    rows = [
        [markdown(name), next(title for a, title in AXIS_TITLES.items() if a == axis), _span(n)]
        for (name, axis), n in counts.items()
    ]
    judges = ", ".join(dict.fromkeys(f"{s.result.judge} v{s.result.judge_version}" for s in study.main.scored))
    return _table(["benchmark", "axis", "items a model"], rows, right=2) + f"\n\nJudge: {markdown(judges)}."


def _span(n: Sequence[int]) -> str:
    return str(min(n)) if min(n) == max(n) else f"{min(n)}–{max(n)}"


# A finding


def _finding(claims: Sequence[Claim], figures: Mapping[str, Path], name: str) -> list[str]:
    if not claims:
        return ["*Not judged: the sweeps hold no such models.*"]
    parts = []
    if name in figures:
        parts.append(f"![{ALTS[name]}](figures/{figures[name].name})")
    parts.append("\n".join(f"- {_verdict(c)}: {markdown(words(c))}" for c in claims))
    if name == "finding_5":
        parts += [_merges(claims), _closed("Every seed, setting and benchmark", "\n\n".join(map(_evidence, claims)))]
    else:
        rows = list(dict.fromkeys(e for c in claims for e in c.evidence))
        parts += [_means(rows), _closed("Every seed, with intervals", _rows(rows))]
    return parts


def _closed(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _means(rows: Sequence[Evidence]) -> str:
    groups: dict[tuple[str, str], list[Evidence]] = {}
    for e in rows:
        groups.setdefault((e.compared, e.quantity), []).append(e)
    body = []
    for (compared, quantity), found in groups.items():
        known = [e for e in found if e.difference is not None and not e.missing]
        if not known:
            body.append([markdown(compared), quantity, "–", "–", "–", f"0 of {len(found)}"])
            continue
        before, after = mean(e.reference for e in known), mean(e.value for e in known)
        each = ", ".join(f"{e.difference:+.2f}" for e in known)
        apart = f"{sum(bool(e.disjoint) for e in known)} of {len(found)}"
        body.append([markdown(compared), quantity, f"{before:.2f}", f"{after:.2f}", each, apart])
    heads = ["compared", "rate", "before, mean", "after, mean", "change, each seed", "disjoint in"]
    return _table(heads, body, right=2)


def _rows(rows: Sequence[Evidence]) -> str:
    body = [
        [markdown(e.compared), markdown(e.quantity), markdown(e.seed), _metric(e.reference), _metric(e.value), _change(e)]
        for e in rows
    ]
    return _table(["compared", "rate", "seed", "before", "after", "change"], body, right=3)


def _metric(m: Metric | None) -> str:
    if m is None or m.value is None:
        return "–"
    return f"{m.value:.2f} [{m.low:.2f}, {m.high:.2f}], n={m.n}"


def _change(e: Evidence) -> str:
    if e.missing or e.difference is None:
        return markdown(e.missing or "–")
    return f"{e.difference:+.2f}, {'disjoint' if e.disjoint else 'overlap'}"


# Finding 5


def _by_setting(claim: Claim) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for outcome in claim.outcomes:
        found.setdefault(outcome.setting, []).append(outcome)
    return dict(sorted(found.items(), key=lambda item: (-sum(o.holds is True for o in item[1]), shortfall(item[1]))))


def _merges(claims: Sequence[Claim]) -> str:
    """For each tuned model, its merges from the nearest on: means over seeds, and the worst single benchmark of any seed."""
    body = []
    for claim in claims:
        for setting, outcomes in _by_setting(claim).items():
            rows = [e for o in outcomes for e in o.evidence if e.difference is not None and not e.missing]
            refusal = [e for e in rows if e.axis == "over_refusal"]
            safety = [e for e in rows if e.axis in ("text_safety", "multimodal_safety")]
            helpful = [e for e in rows if e.axis == "helpfulness"]
            met = f"{sum(o.holds is True for o in outcomes)} of {len(outcomes)}"
            label = markdown(claim.name.partition("/")[2])
            fields = [_refusal(refusal), _worst(safety, 1), _worst(helpful, -1)]
            body.append([label, markdown(setting), f"**{met}**" if met[0] != "0" else met, *fields])
    heads = ["tuned model", "merge", "seeds met", "over-refusal, mean", "worst ASR change", "worst accuracy change"]
    return _table(heads, body, right=2)


def _refusal(rows: Sequence[Evidence]) -> str:
    if not rows:
        return "–"
    falls = sum(bool(e.falls) for e in rows)
    return f"{mean(e.reference for e in rows):.2f} → {mean(e.value for e in rows):.2f} (falls in {falls} of {len(rows)})"


def _worst(rows: Sequence[Evidence], sign: int) -> str:
    """The largest cost of one benchmark in one seed; bold where it is more than is allowed."""
    if not rows:
        return "–"
    worst = max(rows, key=lambda e: sign * (e.difference or 0.0))
    shown = f"{worst.difference:+.2f}"
    return f"{f'**{shown}**' if excess(worst) else shown} {markdown(worst.benchmark)}, seed {markdown(worst.seed)}"


def _evidence(claim: Claim) -> str:
    parts = [f"**{markdown(claim.name.partition('/')[2])}**"]
    for setting, outcomes in _by_setting(claim).items():
        missed = "; ".join(failures(outcomes)) or "nothing"
        parts.append(f"{markdown(setting)}, missed: {markdown(missed)}")
    return "\n\n".join([*parts, _rows(claim.evidence)])


# Limits


def _limits(study: Study) -> str:
    seeds = len(study.main.values("seed"))
    model_seeds = study.main.values("model.seed")
    models = "one aligned model: what differs between such models is not seen" if len(model_seeds) == 1 else ""
    undecided = sum(c.verdict == "inconclusive" for c in study.claims)
    return f"""\
- One made-up world with made-up words, in which harm is a rule: it shows what the methods do to such a rule, and not how large
  an effect is in a large model.
- The recipes were searched for in this world and on some of these seeds, for speed, helpfulness and clear directions, not for
  any verdict on merging ([microworld.md](microworld.md)).
- Several items of a benchmark share a (verb, noun) pair, so intervals are somewhat too narrow.
- {seeds} seed{"s" if seeds != 1 else ""} of adaptation and tuning{f", on {models}" if models else ""}.
- Several claims are tested, and nothing is corrected for their number.
- {undecided} of the {len(study.claims)} claims of the main world are inconclusive."""
