"""`launch/report.py`: a sweep's results, tables, figures and report, from its record and the store. Nothing is run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vlsafe.errors import ConfigError, StoreError
from vlsafe.plan import make_plan
from vlsafe.report import results
from vlsafe.report.build import build, building, shown
from vlsafe.report.final import write_results
from vlsafe.report.outputs import cell_results
from vlsafe.report.source import gather
from vlsafe.report.states import states_now
from vlsafe.store import Store
from vlsafe.sweep import Sweep, check_name, load_sweep

SETTINGS = ("outputs", "store")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launch/report.py", description=__doc__)
    parser.add_argument("sweep", nargs="?", help="the sweep's name, or its folder; without it, the names there are")
    parser.add_argument("--outputs", default="outputs", help="the folder of sweeps/ and store/ (default: outputs)")
    parser.add_argument("--store", help="the store's folder (default: OUTPUTS/store)")
    options = parser.parse_args(dashed(arguments))
    sweep, store = named_sweep(options.sweep or "", options.outputs, options.store)
    return rebuild(sweep, store, Console(highlight=False))


def named_sweep(name: str, outputs: str, store_folder: str | None) -> tuple[Sweep, Store]:
    """By its name, or its folder. Raises `ConfigError` where there is none, `StoreError` where its store isn't there."""
    sweeps = Path(outputs).absolute() / "sweeps"
    folder = Path(name).absolute() if name and (Path(name) / "sweep.json").is_file() else sweeps / name
    if not name:
        there = sorted(p.parent.name for p in sweeps.glob("*/sweep.json"))
        raise ConfigError(f"no sweep named; in {sweeps} there {'are: ' + ', '.join(there) if there else 'is none'}")
    if folder.parent == sweeps:
        check_name(folder.name)
    sweep = load_sweep(folder)
    store = Path(store_folder) if store_folder else folder.parent.parent / "store"
    if not store.is_dir() and not store_folder:
        store = Path(sweep.cells[0].run.store)  # it was elsewhere when the sweep ran
    if not store.is_dir():
        raise StoreError(f"no store at {store}: set --store FOLDER")
    return sweep, Store(store)


def dashed(arguments: Sequence[str] | None) -> list[str]:
    """`outputs=FOLDER`, as `launch/train.py` has it, means `--outputs FOLDER`."""
    import sys

    given = list(sys.argv[1:] if arguments is None else arguments)
    return [f"--{a}" if a.partition("=")[0] in SETTINGS and "=" in a else a for a in given]


def rebuild(sweep: Sweep, store: Store, console: Console) -> int:
    """Writes everything anew and says where; what can't be read is named in the report as not there."""
    began = time.monotonic()
    plan = make_plan(sweep.cells)
    states, reasons = states_now(sweep, plan, store)
    scored = results.score(cell_results(sweep, plan, states, store))
    write_results(scored, sweep.folder)
    with building(console):
        source = gather(sweep, plan, store, states, scored, reasons)
        path = build(source)
    lost = {cell for stage in source.missing for cell in stage.cells}
    if lost:
        said = f"{len(lost)} of {len(plan.cells)} cells are not complete: the report names what is not there"
        console.print(said, style="yellow", soft_wrap=True)
    console.print(
        f"report: {shown(path)} ({time.monotonic() - began:.1f} s), with results.csv, results.md, tables/ and figures/",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0
