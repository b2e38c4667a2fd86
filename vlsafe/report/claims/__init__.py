"""The study's findings as statistical tests over a sweep's records: each comes out supported, not supported or inconclusive.

Criteria and thresholds stand in the docstrings and constants of the modules here, and were fixed before any result was looked
at. Finding 3, on layers, is no claim about benchmarks and is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterable

from vlsafe.report.claims.adaptation import adaptation_claims, compare_helpfulness
from vlsafe.report.claims.base import Claim, Evidence, Outcome, Verdict
from vlsafe.report.claims.merging import merging_claims
from vlsafe.report.claims.tuning import joint_claims, tuning_claims
from vlsafe.report.results import Scored

__all__ = ["Claim", "Evidence", "Outcome", "Verdict", "compare_helpfulness", "judge_claims"]


def judge_claims(scored: Iterable[Scored], control: bool = False) -> list[Claim]:
    """All claims for which the sweep has the models, in the order of the findings. `control`: the sweep is of a world in which
    adaptation can't conflict with alignment, where finding 1 turns into its opposite."""
    records = list(scored)
    return [
        *adaptation_claims(records, control),
        *tuning_claims(records),
        *joint_claims(records),
        *merging_claims(records),
    ]
