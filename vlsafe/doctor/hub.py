"""Models, data sets and benchmarks: whether they are here, and if not, whether they can be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlsafe.cells import Cell, at_home
from vlsafe.doctor.cache import cached, offline, token_there
from vlsafe.doctor.contents import lacks, model_lacks
from vlsafe.doctor.finding import Finding, gigabytes
from vlsafe.doctor.listing import Listing, Listings
from vlsafe.model.convert import patterns
from vlsafe.needed import needed
from vlsafe.plan import Plan
from vlsafe.sources import UNRESOLVED, Source, download, page
from vlsafe.stand_in.notice import NOTICE

GATED = ("meta-llama/",)  # organisations whose models are all behind terms; data sets and benchmarks say it themselves
# Repositories whose weights are taken to be pickled at the commits that our options name, where the hub itself can't be asked.
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


def wanted(cells: Sequence[Cell], plan: Plan, to_run: set[str]) -> list[Source]:
    """What stages that are to run read, and is neither in a folder nor in a mirror."""
    ids = read_by(plan, to_run)
    return [source for _, source, _ in sources(cells).values() if source.path is None and source.id in ids]


def hub(cells: Sequence[Cell], plan: Plan, to_run: set[str], listings: Listings) -> list[Finding]:
    ids = read_by(plan, to_run)
    findings = []
    for where, source, owner in sources(cells).values():
        if source.path is not None:
            findings.append(at_folder(where, source, at_home(owner, cells[0].run)))
        elif source.id in ids:
            findings.append(at_hub(where, source, owner, listings.get((source.kind, source.id))))
            findings += elsewhere(where, owner)
    return findings


def at_folder(where: str, source: Source, owner: Any) -> Finding:
    assert source.path is not None
    name, at = str(source.id or source.folder), f"{where}: at {source.path}"
    wrong = lacks(source, source.path, owner)
    if not wrong:
        return Finding("fine", name, at)
    whole = download(source, files(where, owner), str(source.path)) if source.id else f"mend it, or set {setting(where)}.folder"
    return Finding("missing", name, f"{at}, and {wrong}", whole)


def files(where: str, owner: Any) -> Sequence[str] | None:
    """Patterns of what is read of a source: the last part of `where` is the setting that holds it."""
    reads = getattr(owner, "reads", None)
    found: Sequence[str] | None = None if reads is None else reads(where.rpartition(".")[2])
    return found


def at_hub(where: str, source: Source, owner: Any, listing: Listing | None) -> Finding:
    name, found, allow = str(source.id), cached(source), files(where, owner)
    pinned = source.revision not in (None, UNRESOLVED)
    pin = "" if pinned else f"; pin it with {setting(where)}.revision=COMMIT"
    command = download(source, allow)
    page_of = str(getattr(owner, "page", ""))
    if page_of.startswith("https://github.com/"):
        return Finding("missing", name, f"{where}: is not on the hub, and no folder is named",
                       f"git clone {page_of} FOLDER, then {setting(where)}.folder=FOLDER")  # fmt: skip
    if listing is not None and listing.refused:
        return Finding("missing", name, f"{where}: {listing.refused.removeprefix(f'{name}: ')}")
    if pickled(source, allow, listing):
        said = "its weights are pickled there, which is not read"
        if listing is None:
            said += " (as it was when this was written: the hub was not reached)"
        return Finding("missing", name, f"{where}: {said}",
                       f"{download(source, patterns(allow or ()), 'pickled')}; python -m vlsafe.model.convert pickled"
                       f" MIRROR/{name}; then local=MIRROR")  # fmt: skip
    if found is not None:
        if source.kind == "model" and (wrong := model_lacks(found)):
            return Finding("missing", name, f"{where}: in the hub's cache, and {wrong}", command)
        if pinned:
            return Finding("fine", name, f"{where}: in the hub's cache at {source.revision}")
        return Finding("note" if not offline() else "missing", name, f"{where}: in the hub's cache, but at no pinned commit",
                       f"set {setting(where)}.revision={found.name}")  # fmt: skip
    if offline():
        return Finding("missing", name, f"{where}: not here, and HF_HUB_OFFLINE is set",
                       f"{command} where there is a network, or local=FOLDER with {name} below it")  # fmt: skip
    if listing.gated if listing is not None else gated(source, owner):
        if not token_there():
            return Finding("missing", name, f"{where}: gated, and there is no token",
                           f"accept the terms at {page(source)}, then: hf auth login (or set HF_TOKEN)")  # fmt: skip
        said = f"{where}: gated; a token is there, and whether it may read this is seen when it is asked{pin}"
        return Finding("note", name, said, f"accept the terms at {page(source)} if you have not")
    size = "" if listing is None else f", {gigabytes(sum(listing.of(allow).values()))}"
    return Finding("note", name, f"{where}: comes from the hub on the first run{size}{pin}", command)


def pickled(source: Source, allow: Sequence[str] | None, listing: Listing | None) -> bool:
    """Whether a model is there in pickled weights alone: as the hub says, or where it was not reached, as it once was."""
    if source.kind != "model":
        return False
    return source.id in PICKLED if listing is None else listing.only_pickled(allow)


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
