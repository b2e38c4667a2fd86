"""The merge stage: accounts for every tensor, merges or copies one after the other, and checks what was written.

parents   carrier, model_0, model_1, … and base where the method needs it: model artifacts
writes    a whole model artifact, and merge_report.json with one entry a tensor
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlsafe.errors import CheckError, StageInterrupted
from vlsafe.merge.base import Merge, MergeMethod
from vlsafe.merge.coverage import EMBEDDING, Outcome, Source, Sources, account, open_sources
from vlsafe.model.weights import copy_auxiliary, open_checkpoint, write_checkpoint
from vlsafe.stage import StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from vlsafe.merge.report import MergeReport

REPORT = "merge_report.json"


def run(method: MergeMethod, ctx: StageContext) -> None:
    """Merges `ctx.parents` into `ctx.out`. Raises `CheckError` before writing where a tensor can't be accounted for, and after
    it where what was written is not what was accounted for; `StageInterrupted` when asked to stop."""
    from vlsafe.merge.report import MergeReport

    method.check()
    sources = open_sources(method, ctx.parents)
    weights = list(method.resolved(len(sources.models)).weights or ())
    method.check_weights(weights)
    outcomes = account(method, sources)

    merged = [outcome for outcome in outcomes if outcome.rule == "merged"]
    merge = method.prepare(lambda: (gather(sources, outcome) for outcome in merged), weights)
    report = MergeReport(sources, weights)
    by_name = {outcome.written.name: outcome for outcome in outcomes}
    by_canonical = {outcome.canonical: outcome for outcome in outcomes}
    work = sum(outcome.written.parameters for outcome in outcomes)
    done = 0

    def tensor(info: Any) -> Tensor:
        nonlocal done
        if ctx.should_stop():
            raise StageInterrupted("merge: stopped; the same command merges again")
        outcome = by_name[info.name]
        ctx.progress(done, 2 * work, f"{outcome.rule} {outcome.part}")
        done += info.parameters
        if outcome.rule == "tied":
            report.tied(outcome)
            return _make(merge, sources, by_canonical[EMBEDDING], weights, None)
        return _make(merge, sources, outcome, weights, report)

    write_checkpoint(ctx.out, [o.written for o in outcomes], tensor, int(method.max_shard_gb * 10**9))
    copy_auxiliary(sources.carrier.checkpoint.folder, ctx.out)
    if method.dtype != "carrier":
        _set_dtype(ctx.out / "config.json", method.dtype)
    verify(ctx, outcomes, work)
    (ctx.out / REPORT).write_text(json.dumps(report.table(), indent=1) + "\n", "utf-8")
    ctx.facts.update(report.summary() | templates(sources))
    ctx.progress(2 * work, 2 * work, "merged")


def templates(sources: Sources) -> dict[str, Any]:
    """The carrier's chat template comes with its files, and the name that training gave it with its manifest. Where what is
    merged knew others, those too, by their name in the stage."""
    known = {source.name: _template_hash(source.checkpoint.folder) for source in (sources.carrier, *sources.merged)}
    found: dict[str, Any] = {} if known["carrier"] is None else {"template_hash": known["carrier"]}
    return found if len({*known.values()} - {None}) < 2 else found | {"templates_of_models": known}


def _template_hash(folder: Path) -> str | None:
    manifest = folder / "manifest.json"
    found: str | None = (
        json.loads(manifest.read_text("utf-8")).get("facts", {}).get("template_hash") if manifest.is_file() else None
    )
    return found


def gather(sources: Sources, outcome: Outcome) -> tuple[list[Tensor], Tensor | None]:
    """The models' tensors and the base's, in their own dtypes, without the rows of a vocabulary that not all have."""
    read = [_read(source, outcome)[: outcome.rows] if outcome.rows else _read(source, outcome) for source in sources.merged]
    return read[: len(sources.models)], read[-1] if sources.base else None


def _read(source: Source, outcome: Outcome) -> Tensor:
    return source.checkpoint.read(source.stored[outcome.canonical])


def _make(merge: Merge, sources: Sources, outcome: Outcome, weights: list[float], report: MergeReport | None) -> Tensor:
    """The tensor as it is written, told to `report`."""
    import torch

    dtype = getattr(torch, outcome.written.dtype)
    if outcome.rule == "copied":
        tensor = _read(sources.carrier, outcome)
        if report:
            report.copied(outcome, tensor)
        return tensor.to(dtype)
    tensors, base = gather(sources, outcome)
    tensor = merge(tensors, base, weights, outcome.canonical).to(dtype)
    if report:
        report.merged(outcome, tensor, tensors, base)
    if outcome.rows and outcome.rows < outcome.written.shape[0]:
        tensor = torch.cat([tensor, _read(sources.carrier, outcome)[outcome.rows :].to(dtype)])
    return tensor


def _set_dtype(path: Path, dtype: str) -> None:
    """Says the new dtype wherever the configuration names one, its parts' included, and at its top in any case."""
    if not path.is_file():
        return
    config = json.loads(path.read_text("utf-8"))
    config.setdefault("dtype" if "torch_dtype" not in config else "torch_dtype", dtype)
    for level in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in ("dtype", "torch_dtype"):
            if name in level:
                level[name] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def verify(ctx: StageContext, outcomes: list[Outcome], work: int) -> None:
    """Reads back what was written; raises `CheckError` unless names, shapes and dtypes are as accounted for, values finite."""
    from vlsafe.merge.numerics import all_finite

    written = open_checkpoint(ctx.out)
    expected = {outcome.written.name: outcome.written for outcome in outcomes}
    wrong = [name for name in expected.keys() | written.tensors.keys() if expected.get(name) != written.tensors.get(name)]
    if wrong:
        raise CheckError(f"merge: what was written differs from the accounting in {', '.join(sorted(wrong)[:5])}; see {REPORT}")
    done = work
    for name, info in written.tensors.items():
        ctx.progress(done, 2 * work, "checking what was written")
        done += info.parameters
        if not all_finite(written.read(name)):
            raise CheckError(f"merge: '{name}' holds NaN or infinity: set merge.dtype=float32, or train that parent again")
