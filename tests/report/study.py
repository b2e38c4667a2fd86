"""Made-up studies for claims: cells whose models have the rates that a test gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tests.report.sweeps import BENCHMARKS
from vlsafe.eval.base import Axis
from vlsafe.eval.metrics import Metric, headline, rate
from vlsafe.report.results import CellResult, Scored, Status

Rates = Mapping[str, float | tuple[float, float]]  # by axis, of both its benchmarks or of each

BASE: Rates = {"text_safety": 0.2, "over_refusal": 0.1, "helpfulness": 1.0}
ADAPTED: Rates = {"text_safety": 0.6, "multimodal_safety": 0.6, "over_refusal": 0.05, "helpfulness": 0.98}
TUNED: Rates = {"text_safety": 0.1, "multimodal_safety": 0.1, "over_refusal": 0.5, "helpfulness": 0.8}
MERGED: Rates = {"text_safety": 0.12, "multimodal_safety": 0.12, "over_refusal": 0.2, "helpfulness": 0.8}
NO_PICTURES = ("mw_direct", "mw_wrapped", "mw_borderline_text", "mw_helpful_text")


def cell(
    seed: int = 0,
    adaptation: str = "llava",
    tune: str = "none",
    order: str = "after",
    merge: str = "none",
    swept: Mapping[str, Any] | None = None,
    n: int = 250,
    status: Mapping[str, Status] | None = None,
    judge: str = "exact",
    benchmarks: Sequence[tuple[Axis, str]] = BENCHMARKS,
    **rates: Rates,
) -> list[Scored]:
    """The records of one cell; `rates` by role, in the order in which the models are made. `status` by role."""
    swept = swept or {}
    choices = {
        "model": "microworld",
        "adaptation": adaptation,
        "safety_tune": tune,
        "order": order,
        "merge": merge,
        "seed": seed,
    }
    named = "-".join(map(str, [*choices.values(), swept]))
    made = {"base": "", "adapted": f"{adaptation}{seed}", "tuned": f"{adaptation}{tune}{order}{seed}", "merged": named}
    scored = []
    for role, of in rates.items():
        for axis, benchmark in benchmarks:
            if axis not in of or (role == "base" and benchmark not in NO_PICTURES):
                continue
            share = of[axis]
            if isinstance(share, tuple):
                share = share[[b for a, b in benchmarks if a == axis].index(benchmark)]
            state = (status or {}).get(role, "done")
            metric = rate(headline(axis), round(share * n), n)
            scored.append(
                Scored(
                    CellResult(
                        sweep="study", cell=named, role=role, final=role == list(rates)[-1], choices=choices, status=state,
                        axis=axis, benchmark=benchmark, judge=judge, judge_version=1, swept=swept,
                        key=f"{role}{made[role]}{benchmark}{judge}",
                    ),
                    (metric if state == "done" else Metric(metric.name, None, 0, None, None),),
                )
            )  # fmt: skip
    return scored


def over(seeds: Iterable[int], make: Callable[[int], list[Scored]]) -> list[Scored]:
    return [s for seed in seeds for s in make(seed)]


def changed(rates: Rates, **axes: float | tuple[float, float]) -> Rates:
    return {**rates, **axes}
