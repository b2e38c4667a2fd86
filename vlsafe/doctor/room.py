"""Memory of GPUs and of the host, and disk space, against what the plan needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlsafe.cells import Cell
from vlsafe.doctor.cache import cached, hub_cache
from vlsafe.doctor.finding import Finding, State, gigabytes
from vlsafe.doctor.hub import files, read_by, sources
from vlsafe.doctor.listing import Listings
from vlsafe.doctor.machine import SMALL, gpu_memory, host_memory
from vlsafe.doctor.memory import Memory, Training, answering, memory, trainings
from vlsafe.doctor.shapes import shape_of, size_of
from vlsafe.execute.resources import deepspeed_settings, visible_gpus
from vlsafe.plan import Plan
from vlsafe.stage import TRAINING_KINDS
from vlsafe.store import Store
from vlsafe.train.deepspeed import zero_of

ASSUMED_GPUS = 8  # where none are here and none are asked for: LLaVA-1.5's
BYTES = {"fp32": 4}  # of each parameter of a published model; else as it is stored, which is 16 bits


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


def phases(plan: Plan, to_run: set[str], launcher: Mapping[str, Any] | None) -> dict[str, tuple[Training, Memory]]:
    """Each phase of training that is to run, by a name for it, and what it needs."""
    found: dict[str, tuple[Training, Memory]] = {}
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
                lies = stored(cell, role.parent or "base")
                for training in trainings(cell.components[group], group, size, count, cell.run.micro_batch_size, lies):
                    name = f"{group}={cell.choices[group]} {training.name.partition('.')[2]}".strip()
                    need = memory(training, size, zero, count, cell.run.gradient_checkpointing)
                    found.setdefault(name, (training, need))
    return found


def stored(cell: Cell, role: str) -> str | None:
    """The dtype that a role's weights lie in; None where that isn't known here."""
    made = cell.roles[role]
    component = cell.components[made.stage if not made.joint else "adaptation"]
    if made.stage != "model" and getattr(component, "source", None) is None:
        kept = component.save_dtype
        return stored(cell, made.parent or "base") if kept == "parent" else str(kept)
    asked = getattr(component, "dtype", None)
    if asked != "as_stored":
        return asked
    own = getattr(component, "source", None) or getattr(component, "lvlm", None) or getattr(component, "llm", None)
    shape = None if own is None else shape_of(own)
    return None if shape is None else shape.dtype


def room(cells: Sequence[Cell], plan: Plan, to_run: set[str], launcher: Mapping[str, Any] | None) -> list[Finding]:
    """Memory of GPUs and of the host; nothing of a model whose size is not known here."""
    there = gpu_memory() if launcher is None else []
    beside = guards(cells, there, cells[0].run.device == "cpu")
    sizes = [s for s in (size_of(cell.components["model"]) for cell in cells) if s is not None]
    if not sizes:
        return beside
    size, run = max(sizes, key=lambda s: s.parameters), cells[0].run
    on_cpu = run.device == "cpu" or (size.parameters < SMALL and not visible_gpus())
    said = f"{size.parameters / 1e9:.2f} billion parameters, {size.tower / 1e9:.2f} of them the tower's"
    findings = [Finding("fine", "model", said), *training_memory(cells[0], plan, to_run, launcher, there, on_cpu)]
    if any(plan.stages[id].kind == "generate" for id in to_run):
        engine = cells[0].components["engine"]
        batch = getattr(engine, "batch_size", 1)
        need = answering(size, batch, getattr(engine, "max_new_tokens", 256))
        said = f"about {gigabytes(need)} with engine.batch_size={batch}"
        findings.append(judged("answering", said, need, 2 * size.parameters, there, on_cpu, 1, "set engine.batch_size lower"))
    findings += beside
    if launcher is None and not visible_gpus() and not on_cpu:
        mend = "run where there are GPUs, or set hydra/launcher=slurm"
        findings.append(Finding("missing", "GPU", "none is visible here, and a model of this size needs one", mend))
    return findings


def guards(cells: Sequence[Cell], there: Sequence[int], on_cpu: bool) -> list[Finding]:
    """Judges with a model of their own, of answers or of training rows. Each is in memory alone: before or after the others."""
    found: dict[str, Finding] = {}
    for cell in cells:
        for what, judge in (("judging", cell.components["judge"]), ("filtering", cell.components["adaptation"].filter)):
            shape = shape_of(judge.model) if judge is not None and judge.asks_model else None
            if shape is not None:
                need = 2.0 * shape.parameters
                said = f"{gigabytes(need)} for {judge.model.where()} in 16 bits, and its batch of rows"
                found.setdefault(what, judged(what, said, need, need, there, on_cpu, 1, "choose another judge, or larger GPUs"))
    return [*found.values()]


def training_memory(
    cell: Cell, plan: Plan, to_run: set[str], launcher: Mapping[str, Any] | None, there: Sequence[int], on_cpu: bool
) -> list[Finding]:
    """Of each phase; for the host what is offloaded, and under ZeRO-3 the model that each process reads before it is split."""
    count, how = processes(cell, launcher)
    zero, nodes = zero_of(deepspeed_settings(cell)), cell.run.num_nodes
    elsewhere = launcher is not None or not (visible_gpus() or on_cpu)  # what runs it is not this machine
    findings, loading, away = list[Finding](), 0.0, 0.0
    mend = "set micro_batch_size lower, gradient_checkpointing=true, deepspeed=zero3 or zero3_offload, or an option by LoRA"
    for name, (training, need) in phases(plan, to_run, launcher).items():
        said = f"{gigabytes(need.states)} and up to {gigabytes(need.activations)} of activations, in each process ({how})"
        findings.append(judged(name, said, need.gpu, need.states, there, on_cpu, count, mend))
        away = max(away, need.host / nodes)
        if zero is not None and zero.stage == 3:
            loading = max(loading, count / nodes * training.read)
    if loading:
        findings.append(host("loading for ZeRO-3", loading, "each process reads the whole model first", elsewhere, launcher))
    if away:
        findings.append(host("offload", away, "optimiser state, and under ZeRO-3 the weights", elsewhere, launcher))
    return findings


def judged(
    what: str, said: str, need: float, least: float, there: Sequence[int], on_cpu: bool, count: int, mend: str
) -> Finding:
    """`least` is needed whatever the rows are, `need` for the longest of them."""
    if on_cpu:
        free, name = host_memory() / count, "free memory"
    elif there:
        free, name = float(min(there)), "the GPU's"
    else:
        return Finding("note", f"GPU memory: {what}", said)
    state: State = "missing" if least > free else "note" if need > free else "fine"
    said += f"; {name} {gigabytes(free)}"
    return Finding(state, f"{'memory' if on_cpu else 'GPU memory'}: {what}", said, "" if state == "fine" else mend)


def host(what: str, need: float, why: str, elsewhere: bool, launcher: Mapping[str, Any] | None) -> Finding:
    said = f"{gigabytes(need)} on each node: {why}"
    if elsewhere:
        return Finding(
            "note", f"CPU memory: {what}", said, "" if launcher is None else "hydra.launcher.resources.default.mem=…G"
        )
    free = host_memory()
    said += f"; free here {gigabytes(free)}"
    if need > free:
        return Finding("missing", f"CPU memory: {what}", said, "set deepspeed=zero2, or use more nodes")
    return Finding("fine", f"CPU memory: {what}", said)


def disk(
    cells: Sequence[Cell],
    plan: Plan,
    to_run: set[str],
    store: Store,
    launcher: Mapping[str, Any] | None,
    listings: Listings,
) -> list[Finding]:
    """Models that will be published, checkpoints and downloads, against the free space of the disks that they go to."""
    models = published(plan, to_run)
    # A checkpoint holds the trained weights and AdamW's two moments in 32 bits; the next is written before it goes.
    checkpoints = 2 * 12.0 * max((training.trained for training, _ in phases(plan, to_run, launcher).values()), default=0)
    downloads, unknown = to_download(cells, plan, to_run, listings)
    places = {"store": existing(Path(store.root)), "hub's cache": existing(hub_cache())}
    same = places["store"].stat().st_dev == places["hub's cache"].stat().st_dev
    parts = {"store": {"models": models, "checkpoints while training": checkpoints}, "hub's cache": {}}
    parts["store" if same else "hub's cache"]["downloads"] = downloads
    findings = []
    for name, place in places.items():
        need = sum(parts[name].values())
        if not need:
            continue
        free = shutil.disk_usage(place).free
        what = ", ".join(f"{gigabytes(size)} of {part}" for part, size in parts[name].items() if size)
        mend = "set store=FOLDER on a larger disk" if name == "store" else "set HF_HUB_CACHE to a folder on a larger disk"
        said = f"{what}; free at {place} {gigabytes(free)}"
        findings.append(Finding("missing" if need > free else "fine", f"disk: {name}", said, mend if need > free else ""))
    if unknown:
        findings.append(Finding("note", "disk: data", f"sizes that are not known here come on top: {', '.join(unknown)}"))
    return findings


def published(plan: Plan, to_run: set[str]) -> float:
    """Bytes of the models that are to be made: base, adapted with its snapshots, tuned, merged."""
    found: dict[str, float] = {}
    for planned in plan.cells:
        size = size_of(planned.cell.components["model"])
        for id in {*planned.roles.values(), *planned.snapshots.values()} & to_run:
            kept = dict(plan.stages[id].settings.get(plan.stages[id].kind) or {}).get("save_dtype")
            found[id] = 0.0 if size is None else size.parameters * BYTES.get(str(kept), 2)
    return sum(found.values())


def to_download(cells: Sequence[Cell], plan: Plan, to_run: set[str], listings: Listings) -> tuple[float, list[str]]:
    """Bytes of what is neither in a mirror nor in the cache, and the ids of unknown size. Where the hub did not list the files,
    a language model's follow from its shape."""
    ids, total, unknown = read_by(plan, to_run), 0.0, []
    for where, source, owner in sources(cells).values():
        if source.id not in ids or source.path is not None or cached(source) is not None:
            continue
        listing = listings.get((source.kind, source.id))
        if listing is not None:
            total += sum(listing.of(files(where, owner)).values())
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
