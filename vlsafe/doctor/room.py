"""Memory of GPUs and of the host, and disk space, against what the plan needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.cells import Cell
from vlsafe.doctor.cache import cached, hub_cache
from vlsafe.doctor.finding import Finding, gigabytes
from vlsafe.doctor.hub import read_by, sources
from vlsafe.doctor.machine import gpu_memory, host_memory
from vlsafe.doctor.memory import Memory, answering, memory, trainings
from vlsafe.doctor.shapes import Size, shape_of, size_of
from vlsafe.execute.resources import deepspeed_settings, visible_gpus
from vlsafe.plan import Plan
from vlsafe.stage import TRAINING_KINDS
from vlsafe.store import Store
from vlsafe.train.deepspeed import zero_of

ASSUMED_GPUS = 8  # where none are here and none are asked for: LLaVA-1.5's
BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "float16": 2}


def processes(cell: Cell, launcher: Mapping[str, Any] | None) -> tuple[int, str]:
    """Of a training stage, and how that is known."""
    run = cell.run
    if run.num_processes is not None:
        return run.num_processes, f"num_processes={run.num_processes}"
    if deepspeed_settings(cell) is None:
        return run.num_nodes, "one process on each node"
    asked = (((launcher or {}).get("resources") or {}).get("adaptation") or {}).get("gpus_per_node")
    if asked:
        return int(asked) * run.num_nodes, f"{asked} GPUs a node, as hydra.launcher asks"
    here = len(visible_gpus())
    if here and launcher is None:
        return here * run.num_nodes, f"{here} GPUs here"
    return ASSUMED_GPUS, f"{ASSUMED_GPUS} GPUs assumed; num_processes=N says how many"


def needs(cells: Sequence[Cell], plan: Plan, to_run: set[str], launcher: Mapping[str, Any] | None) -> list[tuple[str, Memory]]:
    """(phase, what it needs) of each training that is to run."""
    found: dict[str, Memory] = {}
    for planned in plan.cells:
        cell = planned.cell
        size = size_of(cell.components["model"])
        count = processes(cell, launcher)[0]
        zero = zero_of(deepspeed_settings(cell))
        for role in cell.roles.roles:
            id = planned.roles.get(role.name)
            if size is None or id not in to_run or plan.stages[str(id)].kind not in TRAINING_KINDS:
                continue
            groups = ("adaptation",) if role.joint else (role.stage,)
            for group in groups:
                for training in trainings(cell.components[group], group, size, count, cell.run.micro_batch_size):
                    name = f"{group}={cell.choices[group]} {training.name.partition('.')[2]}".strip()
                    found.setdefault(name, memory(training, size, zero, count, cell.run.gradient_checkpointing))
    return list(found.items())


def gpus(cells: Sequence[Cell], plan: Plan, to_run: set[str], launcher: Mapping[str, Any] | None) -> list[Finding]:
    sizes = [s for s in (size_of(cell.components["model"]) for cell in cells) if s is not None]
    if not sizes:
        return []
    size = max(sizes, key=lambda s: s.parameters)
    count, how = processes(cells[0], launcher)
    wanted = needs(cells, plan, to_run, launcher)
    findings = [Finding("fine", "model", f"{size.parameters / 1e9:.2f} billion parameters, {size.tower / 1e9:.2f} of them the tower's")]
    there, on_cpu = gpu_memory(), cells[0].run.device == "cpu" or (size.parameters < 1e9 and not visible_gpus())
    if launcher is not None or cells[0].run.num_nodes > 1:
        there = []
    for name, need in wanted:
        said = f"{gigabytes(need.states)} and up to {gigabytes(need.activations)} of activations, in each process ({how})"
        findings.append(judged(f"{'memory' if on_cpu else 'GPU memory'}: {name}", said, need.gpu, need.states, there, on_cpu, count))
        if need.host:
            findings.append(host(f"CPU memory: {name}", need.host / cells[0].run.num_nodes, launcher))
    if any(plan.stages[id].kind == "generate" for id in to_run):
        engine = cells[0].components["engine"]
        need_bytes = answering(size, getattr(engine, "batch_size", 1), getattr(engine, "max_new_tokens", 256))
        said = f"about {gigabytes(need_bytes)} with engine.batch_size={getattr(engine, 'batch_size', 1)}"
        findings.append(judged(f"{'memory' if on_cpu else 'GPU memory'}: answering", said, need_bytes, 2 * size.parameters, there, on_cpu, 1))
    if not there and not on_cpu and launcher is None:
        findings.append(Finding("missing", "GPU", "none is visible here, and a model of this size needs one",
                                "run where there are GPUs, or set hydra/launcher=slurm"))  # fmt: skip
    return findings


def judged(what: str, said: str, need: float, least: float, there: Sequence[int], on_cpu: bool, count: int) -> Finding:
    """`least` is needed whatever the rows are, `need` for the longest of them."""
    if on_cpu:
        room, name = host_memory() / count, "free memory"
    elif there:
        room, name = float(min(there)), "the GPU's"
    else:
        return Finding("note", what, said)
    said += f"; {name} {gigabytes(room)}"
    mend = "set micro_batch_size lower, gradient_checkpointing=true, deepspeed=zero3 or zero3_offload, or an option by LoRA"
    if least > room:
        return Finding("missing", what, said, mend)
    return Finding("note" if need > room else "fine", what, said, mend if need > room else "")


def host(what: str, need: float, launcher: Mapping[str, Any] | None) -> Finding:
    said = f"{gigabytes(need)} on each node, for what is offloaded"
    if launcher is not None:
        return Finding("note", what, said, "ask for it with hydra.launcher.resources.default.mem")
    room = host_memory()
    state = f"; free here {gigabytes(room)}"
    if need > room:
        return Finding("missing", what, said + state, "more nodes, or deepspeed=zero3 on more GPUs")
    return Finding("fine", what, said + state)


def disk(cells: Sequence[Cell], plan: Plan, to_run: set[str], store: Store) -> list[Finding]:
    """Models that will be published, and downloads, against the free space of the disks that they go to."""
    published, scratch = 0.0, 0.0
    for planned in plan.cells:
        size = size_of(planned.cell.components["model"])
        if size is None:
            continue
        for id in {*planned.roles.values(), *planned.snapshots.values()} & to_run:
            stage = plan.stages[id]
            to_run = to_run - {id}
            kept = str(dict(stage.settings.get(stage.kind, {})).get("save_dtype", "bf16"))
            published += size.parameters * BYTES.get(kept, 2)
            if stage.kind in TRAINING_KINDS:  # weights and AdamW's moments in 32 bits, one checkpoint and the next
                scratch = max(scratch, 2 * 12.0 * size.parameters)
    downloads, unknown = to_download(cells, plan, to_run)
    findings = []
    store_disk, cache_disk = existing(Path(store.root)), existing(hub_cache())
    same = os.stat(store_disk).st_dev == os.stat(cache_disk).st_dev
    for where, place, need, what in (
        ("store", store_disk, published + scratch + (downloads if same else 0),
         f"{gigabytes(published)} of models and up to {gigabytes(scratch)} while one trains"
         + (f", {gigabytes(downloads)} of downloads" if same else "")),
        ("hub's cache", cache_disk, 0 if same else downloads, f"{gigabytes(downloads)} of downloads"),
    ):  # fmt: skip
        if not need:
            continue
        free = shutil.disk_usage(place).free
        said = f"{what}; free at {place} {gigabytes(free)}"
        mend = "set store=FOLDER on a larger disk" if where == "store" else "set HF_HUB_CACHE to a folder on a larger disk"
        findings.append(Finding("missing" if need > free else "fine", f"disk: {where}", said, mend if need > free else ""))
    if unknown:
        findings.append(Finding("note", "disk: data", f"sizes that are not known here come on top: {', '.join(unknown)}"))
    return findings


def to_download(cells: Sequence[Cell], plan: Plan, to_run: set[str]) -> tuple[float, list[str]]:
    """Bytes of language models that are neither in a mirror nor in the cache, and the ids of unknown size."""
    wanted, total, unknown = read_by(plan, to_run), 0.0, []
    for _, source, _ in sources(cells).values():
        if source.id not in wanted or source.path is not None or cached(source) is not None:
            continue
        shape = shape_of(source) if source.kind == "model" else None
        if shape is None:
            unknown.append(str(source.id))
        else:
            total += 2 * shape.parameters
    return total, unknown


def existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


