"""Models, data sets and benchmarks: whether they are here, and if not, whether they can be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlsafe.cells import Cell, at_home
from vlsafe.doctor.cache import cached, offline, token_there
from vlsafe.doctor.finding import Finding
from vlsafe.needed import needed
from vlsafe.plan import Plan
from vlsafe.sources import UNRESOLVED, Source, page
from vlsafe.stand_in.notice import NOTICE

GATED = ("meta-llama/",)  # organisations whose models are all behind terms; data sets and benchmarks say it themselves
# Repositories whose weights are pickled at the commits that our options name, and so are not read there.
PICKLED = (
    "openai/clip-vit-large-patch14-336",
    "lmsys/vicuna-7b-v1.5",
    "allenai/tulu-2-7b",
    "ys-zong/llava-v1.5-7b-Posthoc-lora",
)


def sources(cells: Sequence[Cell]) -> dict[str, tuple[str, Source, Any]]:
    """Each thing that the cells could read once, by its id or folder: (dotted name, source, what it belongs to)."""
    found: dict[str, tuple[str, Source, Any]] = {}
    for cell in cells:
        for where, source, owner in needed(cell.components):
            placed = at_home(source, cell.run)
            found.setdefault(f"{placed.kind} {placed.folder or placed.id}", (where, placed, owner))
    return found


def read_by(plan: Plan, to_run: set[str]) -> set[str]:
    """The hub ids in the specs of stages that are to run: what no stage reads need not be there."""
    return {id for stage in to_run for id in ids_in(plan.stages[stage].spec)}


def ids_in(spec: Any) -> Iterator[str]:
    if isinstance(spec, dict):
        if isinstance(spec.get("id"), str) and "revision" in spec:
            yield spec["id"]
        for value in spec.values():
            yield from ids_in(value)
    elif isinstance(spec, (list, tuple)):
        for value in spec:
            yield from ids_in(value)


def folders(cells: Sequence[Cell]) -> list[Finding]:
    """Those that are named and not there: without them nothing can be planned."""
    return [
        Finding(
            "missing",
            source.folder or "",
            f"{where}: there is no such file or folder",
            f"set {setting(where)}.folder to where it is",
        )
        for where, source, _ in sources(cells).values()
        if source.folder is not None and source.path is not None and not source.path.exists()
    ]


def hub(cells: Sequence[Cell], plan: Plan, to_run: set[str]) -> list[Finding]:
    wanted = read_by(plan, to_run)
    findings = []
    for where, source, owner in sources(cells).values():
        if source.path is not None:
            findings.append(Finding("fine", str(source.id or source.folder), f"{where}: at {source.path}"))
        elif source.id in wanted:
            findings.append(at_hub(where, source, owner))
            findings += elsewhere(where, owner)
    return findings


def at_hub(where: str, source: Source, owner: Any) -> Finding:
    name, found = str(source.id), cached(source)
    pinned = source.revision not in (None, UNRESOLVED)
    repository = f"{source.id}{' --repo-type dataset' if source.kind == 'dataset' else ''}"
    repository += f" --revision {source.revision}" if pinned else ""
    pin = "" if pinned else f"; pin it with {setting(where)}.revision=COMMIT"
    page_of = str(getattr(owner, "page", ""))
    if page_of.startswith("https://github.com/"):
        return Finding("missing", name, f"{where}: is not on the hub, and no folder is named",
                       f"git clone {page_of} FOLDER, then {setting(where)}.folder=FOLDER")  # fmt: skip
    if name in PICKLED:
        return Finding("missing", name, f"{where}: its weights are pickled there, which is not read",
                       f"hf download {name} --local-dir pickled; python -m vlsafe.model.convert pickled MIRROR/{name}; then"
                       " local=MIRROR")  # fmt: skip
    if found is not None:
        if pinned:
            return Finding("fine", name, f"{where}: in the hub's cache at {source.revision}")
        return Finding("note" if not offline() else "missing", name, f"{where}: in the hub's cache, but at no pinned commit",
                       f"set {setting(where)}.revision={found.name}")  # fmt: skip
    if offline():
        return Finding("missing", name, f"{where}: not here, and HF_HUB_OFFLINE is set",
                       f"hf download {repository} where there is a network, or local=FOLDER with {name} below it")  # fmt: skip
    if gated(source, owner):
        if not token_there():
            return Finding("missing", name, f"{where}: gated, and there is no token",
                           f"accept the terms at {page(source)}, then: hf auth login (or set HF_TOKEN)")  # fmt: skip
        said = f"{where}: gated; a token is there, and whether it may read this is seen when it is asked{pin}"
        return Finding("note", name, said, f"accept the terms at {page(source)} if you have not")
    return Finding("note", name, f"{where}: comes from the hub on the first run{pin}", f"hf download {repository}")


def setting(where: str) -> str:
    """The override's name: a benchmark's own settings stand under eval.settings."""
    return where.replace("eval: ", "+eval.settings.")


def gated(source: Source, owner: Any) -> bool:
    said = getattr(owner, "gated", None)
    return bool(said) if isinstance(said, bool) else str(source.id).startswith(GATED)


def elsewhere(where: str, owner: Any) -> list[Finding]:
    """LLaVA-Instruct's pictures lie on the sites of five other data sets."""
    if getattr(owner, "component_name", "") != "llava_instruct" or owner.images is not None:
        return []
    name = where.rpartition(".")[0]
    said = f"{name}: they are not on the hub, and no folder is named"
    mend = f"download them as docs/data.md says, then {name}.images={{folder: /path}}"
    return [Finding("missing", "pictures of LLaVA-Instruct", said, mend)]


def notice(cells: Sequence[Cell]) -> list[Finding]:
    return [Finding("note", "stand-ins", NOTICE)] if cells[0].run.stand_in else []
