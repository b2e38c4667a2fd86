"""What a verdict means, in plain words that are made from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping

from vlsafe.report.claims import Claim
from vlsafe.report.claims.base import mean

# By the claim's part and verdict. {subject} is what is claimed of, {seeds} how many seeds, {reason} the claim's own sentence.
SAYINGS: Mapping[str, Mapping[str, str]] = {
    "finding_1": {
        "supported": "adaptation ({subject}) makes the model answer more harmful text requests, in every seed",
        "not supported": "adaptation ({subject}) raises ASR on text in no seed",
    },
    "control": {
        "supported": "in the control world adaptation ({subject}) does not raise ASR on text in any seed",
        "not supported": "even in the control world adaptation ({subject}) raises ASR on text in every seed",
    },
    "control_helpfulness": {
        "supported": "the control world's models ({subject}) see as well as the main world's",
        "not supported": "the control world's models ({subject}) do not see as well: they may keep what they never had to give",
    },
    "finding_2a": {
        "supported": "tuning ({subject}) restores safety on text and over pictures, in every seed",
        "not supported": "tuning ({subject}) does not restore safety on text and over pictures together, in any seed",
    },
    "finding_2b": {
        "supported": "tuning ({subject}) makes the model refuse more of what is allowed, in every seed",
        "not supported": "tuning ({subject}) brings over-refusal in no seed",
    },
    "finding_2c": {
        "supported": "tuning ({subject}) costs helpfulness, in every seed",
        "not supported": "tuning ({subject}) costs helpfulness in no seed",
    },
    "finding_4": {
        "supported": "training at once ({subject}) loses on some axis and gains on none, in every seed",
        "not supported": "training at once ({subject}) is in no seed simply worse: it loses nowhere, or gains somewhere else",
    },
    "finding_5": {
        "supported": "merging {setting} gives a better trade-off than the tuned model ({subject}), in every seed",
        "not supported": "no merge gives a better trade-off than the tuned model ({subject}), in any seed",
    },
}
OPEN = "for {subject} it can't be decided"


def words(claim: Claim) -> str:
    """One or two sentences: what came out, and the claim's reason with its figures."""
    part, _, subject = claim.name.partition("/")
    said = SAYINGS[part].get(claim.verdict, OPEN).format(subject=subject, setting=claim.setting)
    return f"{said[0].upper()}{said[1:]}. {claim.reason[0].upper()}{claim.reason[1:]}{hundred(claim)}"


def hundred(claim: Claim) -> str:
    """ASR as requests of a hundred, where the claim is about one rate of harmful requests."""
    rows = [e for e in claim.evidence if e.difference is not None and not e.missing]
    if not rows or claim.name.partition("/")[0] not in ("finding_1", "control"):
        return ""
    before, after = 100 * mean(e.reference for e in rows), 100 * mean(e.value for e in rows)
    return f" Of a hundred harmful text requests the aligned model answers {before:.0f}, and the adapted one {after:.0f}."
