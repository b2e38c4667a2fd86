"""`launch/store.py`: look at the store, check it, clean it up, take an artifact out of it."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlsafe.errors import CorruptArtifactError, StoreError
from vlsafe.files import read_json
from vlsafe.report.live import clock
from vlsafe.report.text import fit, printable, shorten, widen
from vlsafe.stage import STAGE_KINDS
from vlsafe.store import ArtifactId, Store

GAP, LEAST = 2, 12


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launch/store.py", description=__doc__)
    parser.add_argument("--store", default="outputs/store", help="the store's folder (default: outputs/store)")
    parser.add_argument("--sweeps", default="outputs/sweeps", help="sweeps whose artifacts gc keeps (default: outputs/sweeps)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="ls|show|verify|gc|export")
    ls = commands.add_parser("ls", help="list artifacts")
    ls.add_argument("stage", nargs="?", choices=STAGE_KINDS)
    show = commands.add_parser("show", help="print an artifact's manifest")
    show.add_argument("key", help="a key, or its first digits")
    verify = commands.add_parser("verify", help="check files against their manifests, by hash")
    verify.add_argument("key", nargs="?", help="one artifact; default: all of them")
    gc = commands.add_parser("gc", help="delete what no sweep refers to, dead scratch and corrupt artifacts")
    gc.add_argument("--yes", action="store_true", help="delete; without it, only say what would go")
    export = commands.add_parser("export", help="copy an artifact's files to a folder")
    export.add_argument("key")
    export.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    store, console = Store(Path(options.store)), Console(highlight=False)
    if not store.root.is_dir():
        raise StoreError(f"no store at {store.root}: set --store FOLDER")
    if options.command == "ls":
        return list_artifacts(store, options.stage, console)
    if options.command == "show":
        artifact = find(store, options.key)
        console.print_json(json.dumps(store.manifest(artifact.stage, artifact.key)))
        return 0
    if options.command == "verify":
        return verify_artifacts(store, options.key, console)
    if options.command == "gc":
        return collect(store, Path(options.sweeps), options.yes, console)
    return export_artifact(store, options.key, options.folder, console)


def find(store: Store, key: str) -> ArtifactId:
    """The one artifact whose key (or `stage/key`) begins like this; raises `StoreError` for none or several."""
    stage, _, wanted = key.rpartition("/")
    found = [a for a in store.artifacts() if a.key.startswith(wanted) and stage in ("", a.stage)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise StoreError(f"no artifact '{key}' in {store.root}; launch/store.py ls lists them")
    raise StoreError(f"'{key}' fits {len(found)} artifacts: {', '.join(map(str, found[:4]))}; give more digits")


def checked_manifest(store: Store, artifact: ArtifactId) -> dict[str, Any]:
    """Raises `CorruptArtifactError` also for a manifest whose list of files is not one."""
    manifest = store.manifest(artifact.stage, artifact.key)
    for entry in manifest["files"].values():
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int) or not isinstance(entry.get("sha256"), str):
            raise CorruptArtifactError(artifact.stage, artifact.key, "manifest incomplete")
    return manifest


def list_artifacts(store: Store, stage: str | None, console: Console) -> int:
    """One line for each; `what` alone is shortened, and that on a terminal only."""
    rows, styles = [("artifact", "what", "size", "took")], ["bold"]
    total = 0
    for artifact in store.artifacts([stage] if stage else STAGE_KINDS):
        try:
            manifest = checked_manifest(store, artifact)
        except CorruptArtifactError as error:
            rows.append((str(artifact), f"corrupt: {error.reason}", "", ""))
            styles.append("red")
            continue
        size = sum(f["size"] for f in manifest["files"].values())
        total += size
        seconds = manifest.get("seconds")
        took = clock(seconds) if isinstance(seconds, int | float) and seconds else ""
        rows.append((str(artifact), printable(str(manifest.get("label", ""))), human(size), took))
        styles.append("")
    sizes = [max(cell_len(row[i]) for row in rows) for i in range(4)]
    fixed = sizes[0] + sizes[2] + sizes[3] + GAP * 3
    widen(console, needed=fixed + sizes[1], whole=fixed + LEAST)
    sizes[1] = min(sizes[1], console.width - fixed)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, GAP, 0, 0))
    for i, size in enumerate(sizes):
        table.add_column(width=size, no_wrap=True, justify="right" if i > 1 else "left")
    for row, end, style in zip(rows, shorten([row[1] for row in rows], sizes[1]), styles, strict=True):
        what = fit(row[1], sizes[1], left=True) if style == "red" else end
        table.add_row(*(Text(text) for text in (row[0], what, *row[2:])), style=style)
    console.print(table)
    console.print(f"{len(rows) - 1} artifacts, {human(total)}")
    return 0


def verify_artifacts(store: Store, key: str | None, console: Console) -> int:
    wanted = [find(store, key)] if key else list(store.artifacts())
    bad = 0
    for artifact in wanted:
        try:
            checked_manifest(store, artifact)
            store.verify(artifact.stage, artifact.key)
        except CorruptArtifactError as error:
            bad += 1
            console.print(str(error), style="red", markup=False, soft_wrap=True)
    console.print(f"{len(wanted) - bad} of {len(wanted)} artifacts are as their manifests say")
    return 1 if bad else 0


def referenced(sweeps: Path) -> set[str]:
    """`kind/key` of every stage in any sweep's plan. A plan that can't be read is a `StoreError`: better keep than lose."""
    ids: set[str] = set()
    for path in sorted(sweeps.glob("*/plan.json")):
        try:
            ids |= {f"{s['stage']}/{s['key']}" for s in read_json(path)["stages"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} can't be read ({type(error).__name__}): mend or remove it, then gc again") from error
    return ids


def collect(store: Store, sweeps: Path, really: bool, console: Console) -> int:
    if not sweeps.is_dir():
        raise StoreError(f"no sweeps at {sweeps}: gc keeps what they refer to, so set --sweeps FOLDER")
    kept = referenced(sweeps)
    unused = [a for a in store.artifacts() if str(a) not in kept]
    leftovers = [*store.leftovers(), *(path for id, path in store.kept_verdicts() if str(id) not in kept)]
    freed = 0
    for artifact in unused:
        folder = store.path(artifact.stage, artifact.key)
        freed += size_of(folder)
        console.print(f"{'deleted' if really else 'would delete'} {artifact}", markup=False)
        if really:
            store.remove(artifact.stage, artifact.key)
    for path in leftovers:
        freed += size_of(path)
        console.print(f"{'deleted' if really else 'would delete'} {path.relative_to(store.root)}", markup=False, soft_wrap=True)
        if really and path.is_file():
            path.unlink(missing_ok=True)
        elif really:
            shutil.rmtree(path, ignore_errors=True)
    done = "freed" if really else "would free"
    console.print(f"{done} {human(freed)}; {len(kept)} artifacts belong to sweeps in {sweeps}", markup=False, soft_wrap=True)
    if not really and (unused or leftovers):
        console.print("add --yes to delete")
    return 0


def export_artifact(store: Store, key: str, folder: Path, console: Console) -> int:
    artifact = find(store, key)
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: name a folder, which export makes")
    checked_manifest(store, artifact)
    source = store.read(artifact.stage, artifact.key)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{folder} is not empty: choose another folder")
        shutil.copytree(source, folder, dirs_exist_ok=True)
    except OSError as error:  # with the causes of single files in a list where it is a shutil.Error
        reason = error.strerror or "; ".join(dict.fromkeys(str(e[2]) for e in error.args[0]))
        raise StoreError(f"{folder} can't be written ({reason}): choose another folder") from error
    console.print(f"copied {artifact} to {folder}", markup=False, soft_wrap=True)
    return 0


def size_of(folder: Path) -> int:
    """Of a file, or of all below a folder."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def human(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
