"""What a report is made from: scored records, what manifests say of every stage, where responses lie, and what is not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlsafe.cells import flatten
from vlsafe.errors import StoreError
from vlsafe.plan import Plan
from vlsafe.report.executions import device, zero_option
from vlsafe.report.outputs import THERE, Reason
from vlsafe.report.results import Scored, rows
from vlsafe.stage import STAGE_KINDS
from vlsafe.store import Store
from vlsafe.sweep import Sweep

LOG_LINES = 20
LOG_BYTES = 16_000


@dataclass(frozen=True)
class StageFacts:
    """One stage of the sweep as its manifest has it; what is not known is empty."""

    kind: str
    key: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted name → value
    started: str = ""
    seconds: float | None = None
    threads: int | None = None
    device: str = ""
    processes: str = ""  # of a training: how many, and how DeepSpeed shared it
    python: str = ""
    platform: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    template: str = ""
    files: str = ""  # a hash over its files' hashes


@dataclass(frozen=True)
class Missing:
    """A stage that failed, was left out, or is not there yet, with the cells that need it."""

    kind: str
    label: str
    state: str  # failed, skipped or missing
    cells: tuple[str, ...]
    error: str = ""
    log: str = ""  # relative to the sweep's folder where it is below it
    tail: str = ""  # the log's last lines


@dataclass(frozen=True)
class Source:
    """`responses` is the folder of the answers that a record's labels are of, by the record's key. `command` is what the
    sweep is rebuilt with."""

    sweep: str
    folder: Path
    scored: Sequence[Scored]
    stages: Sequence[StageFacts] = ()
    missing: Sequence[Missing] = ()
    responses: Mapping[str, Path] = field(default_factory=dict)
    cells: int = 0
    control: bool = False  # every cell's adaptation sees the alignment's examples again

    def digest(self) -> str:
        """Of all that the report depends on, its own code included: the same digest, the same report."""
        lines = [
            {**line, "final": s.result.final, "collapsed": s.result.collapsed, "conditions": dict(s.result.conditions),
             "execution": s.result.execution}
            for s in self.scored for line in rows([s])
        ]  # fmt: skip
        said = {
            "code": code_version(), "sweep": self.sweep, "cells": self.cells, "control": self.control, "results": lines,
            "stages": [asdict(s) for s in self.stages], "missing": [asdict(m) for m in self.missing],
            "responses": sorted(self.responses),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode("utf-8", "backslashreplace")).hexdigest()


@cache
def code_version() -> str:
    """A hash of everything that shapes a report: this package's files, and the library that draws."""
    found = hashlib.sha256(version("matplotlib").encode())
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".j2", ".css", ".js"):
            found.update(path.read_bytes())
    return found.hexdigest()


def gather(
    sweep: Sweep,
    plan: Plan,
    store: Store,
    states: Mapping[str, str],
    scored: Sequence[Scored],
    reasons: Mapping[str, Reason],
) -> Source:
    facts, responses = [], {}
    for id, stage in plan.stages.items():
        if states[id] not in THERE:
            continue
        with contextlib.suppress(StoreError):
            facts.append(facts_of(stage.kind, stage.key, stage.label, store.manifest(stage.kind, stage.key)))
        if stage.kind == "judge" and states[stage.parents["responses"]] in THERE:
            responses[stage.key] = store.root / stage.parents["responses"]
    missing = missing_stages(sweep, plan, states, reasons)
    control = all(c.components["data"].replays_alignment for c in sweep.cells)
    return Source(sweep.name, sweep.folder, scored, facts, missing, responses, len(plan.cells), control)


def facts_of(kind: str, key: str, label: str, manifest: Mapping[str, Any]) -> StageFacts:
    """Whatever a manifest lacks, or holds in another form than ours, is left empty."""
    environment, execution = _mapping(manifest.get("environment")), _mapping(manifest.get("execution"))
    code, seconds, threads = _mapping(environment.get("code")), manifest.get("seconds"), execution.get("threads")
    settings = {k: v for name, value in _mapping(manifest.get("spec")).items() for k, v in flatten(value, str(name)).items()}
    files = {name: _mapping(entry).get("sha256") for name, entry in _mapping(manifest.get("files")).items()}
    return StageFacts(
        kind=kind, key=key, label=label, settings=settings, started=str(manifest.get("started") or ""),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        threads=threads if isinstance(threads, int) else None, device=device(execution) or "", processes=processes(execution),
        python=str(environment.get("python") or ""), platform=str(environment.get("platform") or ""),
        packages={str(k): str(v) for k, v in _mapping(environment.get("packages")).items()},
        code=f"{str(code.get('commit', ''))[:12]}{', changed since' if code.get('modified') else ''}" if code else "",
        template=str(_mapping(manifest.get("facts")).get("template_hash") or ""),
        files=hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
    )  # fmt: skip


def processes(execution: Mapping[str, Any]) -> str:
    count, zero = execution.get("num_processes"), zero_option(execution)
    return "" if count is None else f"{count}" if zero in (None, "none") else f"{count} by {zero}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def missing_stages(sweep: Sweep, plan: Plan, states: Mapping[str, str], reasons: Mapping[str, Reason]) -> list[Missing]:
    """Those that failed first, then what is not there only because of them, then what was never begun."""
    needed = plan.cells_of()
    found = []
    for id, stage in plan.stages.items():
        if states[id] in THERE:
            continue
        state = states[id] if states[id] in ("failed", "skipped") else "missing"
        error, log = reasons.get(id, Reason("", ""))
        cells = tuple(dict.fromkeys(sweep.cell_name(plan.cells[i].cell) for i in needed[id]))
        path = Path(log) if log else None
        where = str(path.relative_to(sweep.folder)) if path and path.is_relative_to(sweep.folder) else log
        found.append(Missing(stage.kind, stage.label, state, cells, error, where, tail(path) if path else ""))
    order = {"failed": 0, "skipped": 1, "missing": 2}
    return sorted(found, key=lambda m: (order[m.state], STAGE_KINDS.index(m.kind)))


def tail(path: Path) -> str:
    """The last lines of a log; empty where it can't be read."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - LOG_BYTES))
            return "\n".join(handle.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:])
    except OSError:
        return ""
