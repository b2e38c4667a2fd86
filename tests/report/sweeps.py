"""Made-up sweeps with known rates: base, adapted, tuned and merged models on the four axes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.eval.base import Axis
from vlsafe.report.results import CellResult, Status

BENCHMARKS: tuple[tuple[Axis, str], ...] = (
    ("text_safety", "mw_direct"),
    ("text_safety", "mw_wrapped"),
    ("multimodal_safety", "mw_typographic"),
    ("multimodal_safety", "mw_cross_modal"),
    ("over_refusal", "mw_borderline_text"),
    ("over_refusal", "mw_borderline_picture"),
    ("helpfulness", "mw_helpful_text"),
    ("helpfulness", "mw_helpful_picture"),
)
COUNTED = {
    "text_safety": ("answered", "refused"),
    "multimodal_safety": ("answered", "refused"),
    "over_refusal": ("refused", "answered"),
    "helpfulness": ("correct", "incorrect"),
}


def labels(folder: Path, axis: Axis, counted: int, n: int = 100, other: int = 0, unparsed: int = 0) -> Path:
    """`counted` of `n` rows count; `other` and `unparsed` of the rest are so."""
    if (folder / "labels.jsonl").exists():
        return folder
    hit, miss = COUNTED[axis]
    rows = [hit] * counted + ["other"] * other + ["unparsed"] * unparsed
    rows += [miss] * (n - len(rows))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.jsonl").write_text("".join(json.dumps({"id": str(i), "label": x}) + "\n" for i, x in enumerate(rows)))
    return folder


def share(key: str) -> int:
    """A made-up count of 100 that a key alone decides."""
    return sum(ord(c) * (i + 3) for i, c in enumerate(key)) % 101


def sweep(
    root: Path,
    tunes: Sequence[str] = ("none", "sft"),
    merges: Sequence[str] = ("none", "ties"),
    swept: Mapping[str, Sequence[Any]] | None = None,
    seeds: Sequence[int] = (0,),
    benchmarks: Sequence[tuple[Axis, str]] = BENCHMARKS,
    judges: Sequence[str] = ("exact",),
    status: Callable[[str, str, str], Status] = lambda tune, merge, role: "done",
    name: str = "demo",
) -> list[CellResult]:
    """Every cell of the grid, with its roles on the way; base is not asked about pictures."""
    swept = swept or {}
    results = []
    for seed, tune, merge, *values in itertools.product(seeds, tunes, merges, *swept.values()):
        roles = ["base", "adapted"] + ["tuned"] * (tune != "none") + ["merged"] * (merge != "none")
        made = {"base": "", "adapted": f"{seed}", "tuned": f"{seed}{tune}", "merged": f"{seed}{tune}{merge}{values}"}
        for role, (axis, benchmark), judge in itertools.product(roles, benchmarks, judges):
            if role == "base" and ("multimodal" in axis or "picture" in benchmark):
                continue
            key, state = f"{role}{made[role]}{benchmark}{judge}", status(tune, merge, role)
            results.append(
                CellResult(
                    sweep=name,
                    cell=f"{tune}-{merge}-{values}-{seed}",
                    role=role,
                    final=role == roles[-1],
                    choices={
                        "model": "microworld",
                        "adaptation": "llava",
                        "safety_tune": tune,
                        "order": "after",
                        "merge": merge,
                        "seed": seed,
                    },
                    status=state,
                    axis=axis,
                    benchmark=benchmark,
                    judge=judge,
                    judge_version=1,
                    key=key,
                    labels=labels(root / key, axis, share(key)) if state == "done" else None,
                    swept=dict(zip(swept, values, strict=True)),
                )
            )
    return results
