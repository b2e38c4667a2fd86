"""What of a stage's execution is compared between cells: it is in no key, and can move a result by a little."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlsafe.errors import StoreError
from vlsafe.plan import Plan
from vlsafe.stage import TRAINING_KINDS
from vlsafe.store import Store

# By kind of stage. Labels are rules over the answers, and a judge that is a model says in its version what it is.
PACKAGES = {
    **dict.fromkeys(TRAINING_KINDS, ("torch", "transformers", "trl", "accelerate", "peft")),
    "merge": ("torch",),
    "generate": ("torch", "transformers"),
}


def differing_executions(plan: Plan, there: Sequence[str], store: Store) -> dict[str, tuple[str, ...]]:
    """For each stage that ran otherwise than most stages of its kind: in what, as `safety_tune: threads 2, most 1`.

    Kinds are not compared with each other: an adaptation has more threads than a tuning by default. What a manifest does not
    say is not compared, and of two values that are equally many the one that the plan names first is taken as most.
    """
    made: dict[str, dict[str, str]] = {}
    for id in there:
        stage = plan.stages[id]
        if stage.kind in PACKAGES:
            with contextlib.suppress(StoreError):
                made[id] = how_made(stage.kind, store.manifest(stage.kind, stage.key))
    counts: dict[tuple[str, str], Counter[str]] = {}
    for id, said in made.items():
        for aspect, value in said.items():
            counts.setdefault((plan.stages[id].kind, aspect), Counter())[value] += 1
    most = {at: values.most_common(1)[0][0] for at, values in counts.items()}
    differs: dict[str, tuple[str, ...]] = {}
    for id, said in made.items():
        kind = plan.stages[id].kind
        differs[id] = tuple(f"{kind}: {a} {v}, most {most[kind, a]}" for a, v in said.items() if v != most[kind, a])
    return differs


def how_made(kind: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """As far as the manifest says so. Merges sum in 64 bits, and processes that share a benchmark's items give the bytes of
    one, so neither threads nor processes count there."""
    execution, environment = manifest.get("execution") or {}, manifest.get("environment") or {}
    versions = environment.get("packages") or {}
    said: dict[str, Any] = {}
    if kind != "merge":
        said["device"] = device(execution)
    if kind in TRAINING_KINDS:
        said |= {name: execution.get(name) for name in ("threads", "num_processes", "gradient_checkpointing")}
        said |= {name: execution[name] or "null" for name in ("micro_batch_size",) if name in execution}
        said["deepspeed"] = zero_option(execution)
        if execution.get("deepspeed"):
            said["deepspeed's version"] = versions.get("deepspeed")
    if kind == "generate":
        said["batch_size"] = ((execution.get("settings") or {}).get("engine") or {}).get("batch_size")
    said |= {name: versions.get(name) for name in PACKAGES[kind]}
    return {aspect: str(value) for aspect, value in said.items() if value is not None}


def device(execution: Mapping[str, Any]) -> str | None:
    """What a stage ran on; None where only `auto` is known of it."""
    found = execution.get("ran_on") or execution.get("device")
    return None if found in (None, "auto") else str(found)


def zero_option(execution: Mapping[str, Any]) -> str | None:
    """The option of the group `deepspeed`: `none`, `zero2`, `zero3_offload`; None where nothing says so."""
    if "deepspeed" not in execution:
        return None
    zero = execution["deepspeed"] or {}
    return f"zero{zero['stage']}{'_offload' if zero.get('offload') else ''}" if "stage" in zero else "none"
