"""What `launch/train.py`, `plan.py` and `doctor.py` do: cells → plan → executor → results. Hydra only composes."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from vlsafe import registry
from vlsafe.cells import GROUPS, Cell, RunSettings, check_padding, check_read, check_worlds, make_cell
from vlsafe.config_errors import explain
from vlsafe.errors import ConfigError, VlsafeError
from vlsafe.estimate import time_left, wall
from vlsafe.execute.executor import Executor
from vlsafe.execute.progress import Outcome
from vlsafe.execute.resources import deepspeed_settings
from vlsafe.execute.survey import Survey, survey
from vlsafe.hydra_plugins import Grid, register_plugins, search_path, take_over
from vlsafe.plan import Plan, make_plan
from vlsafe.plugins import check_configs
from vlsafe.recipes import check_recipes
from vlsafe.sources import check_resolved
from vlsafe.stand_in.notice import notice_for
from vlsafe.store import Store
from vlsafe.sweep import Sweep, open_sweep, record_lock, save_record, sweep_name
from vlsafe.tracking.follow import followed

Action = Literal["train", "plan", "doctor"]
FULL = (errno.ENOSPC, errno.EDQUOT)
PLACE_ERRORS = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR)
HELP = frozenset({"--help", "-h", "--hydra-help", "--version"})
BAD_INPUT, STOPPED, BUG = 2, 130, 70


def main(action: Action, conf: Path) -> None:
    """Exit status: 0 all done, 1 a stage failed (doctor: something is missing), 2 bad input, 130 stopped by Ctrl-C."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, to be said in one line
    if action == "doctor":
        from vlsafe.doctor.cache import ask_nobody

        ask_nobody()
    with errors_in_one_line():
        check_plugins(conf, sys.argv)
        register_plugins()
        take_over(sys.argv)

        @hydra.main(version_base="1.3", config_path=str(conf.absolute()), config_name="config")
        def launch(configs: Any) -> int | None:
            if not isinstance(configs, Grid):
                return run_one(configs)
            status = run(action, configs)
            if status:
                sys.exit(status)
            return None

        launch()


def check_plugins(conf: Path, argv: list[str]) -> None:
    """A broken plug-in, or a config that can't be, is named before anything is composed. Help is shown all the same."""
    try:
        check_configs(conf, search_path(argv))
        if not HELP.intersection(argv):
            registry.load()
    except VlsafeError as error:
        if not HELP.intersection(argv):
            raise
        Console(stderr=True, highlight=False, emoji=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)


class errors_in_one_line:  # noqa: N801
    """Ends the process with one line for the user; what is a bug leaves its traceback in a file."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> Literal[False]:
        if error is None or isinstance(error, SystemExit):
            return False
        console = Console(stderr=True, highlight=False, emoji=False)
        if isinstance(error, KeyboardInterrupt):
            console.print("Stopped: the same command goes on from here.", style="yellow")
            sys.exit(STOPPED)
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        if isinstance(error, (VlsafeError, HydraException, OmegaConfBaseException)):
            message = " ".join(str(error).split()) if isinstance(error, VlsafeError) else explain(error)
            console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)
            sys.exit(BAD_INPUT)
        if isinstance(error, OSError) and error.errno in PLACE_ERRORS:
            where = f" {error.filename}" if error.filename else ""
            hint = (
                "free some space, or set outputs=FOLDER and store=FOLDER"
                if error.errno in FULL
                else "set outputs=FOLDER or store=FOLDER"
            )
            console.print(f"error: can't write{where} ({error.strerror}): {hint}", style="red", markup=False, soft_wrap=True)
            sys.exit(BAD_INPUT)
        given = [a.partition("=")[2] for a in sys.argv[1:] if a.startswith("outputs=")]
        log = Path((given or ["outputs"])[-1]).absolute() / "error.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("".join(traceback.format_exception(error)))
            where = f"traceback in {log}"
        except OSError:
            where = "".join(traceback.format_exception(error))
        console.print(f"error: {type(error).__name__}: {error} ({where})", style="red", markup=False, soft_wrap=True)
        sys.exit(BUG)


def run_one(config: DictConfig) -> int:
    """One cell, as a job of one of Hydra's own launchers. It must not exit: submitit would lose what other jobs return."""
    from hydra.core.hydra_config import HydraConfig

    from vlsafe.elsewhere import run_job

    registry.load()
    choices = HydraConfig.get().runtime.choices
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return run_job(*as_it_runs(plain, choices), Console(highlight=False, width=160))


def cells_of(grid: Grid) -> list[Cell]:
    cells = []
    for config in grid.configs:
        check_worlds(config, {g: str(config.hydra.runtime.choices.get(g)) for g in GROUPS})
    named = {*(o.lstrip("+").partition("=")[0] for o in grid.overrides), *grid.swept}
    check_recipes(grid.configs, named)
    for config in grid.configs:
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        plain = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        cells.append(make_cell(*as_it_runs(plain, choices)))
    check_read(cells, sorted(named))
    check_padding(cells, named)
    return cells


def as_it_runs(plain: dict[Any, Any], chosen: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A cell's config and the option of each group; with `+stand_in`, those on stand-ins."""
    config, choices = {str(k): v for k, v in plain.items()}, {g: str(chosen.get(g)) for g in GROUPS}
    if config.get("stand_in") is None:
        return config, choices
    from vlsafe.stand_in.make import stand_in

    return stand_in(config, choices)


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])


def run(action: Action, grid: Grid) -> int:
    began = time.monotonic()
    console = Console(highlight=False)
    cells = cells_of(grid)
    settings = cells[0].run
    name = sweep_name(settings, grid.overrides)
    check_not_swept(grid.swept, cells)
    if notice := notice_for(name):
        console.print(notice, style="bold reverse", markup=False, soft_wrap=True)
    folder = Path(settings.outputs).absolute() / "sweeps" / name
    store = Store(Path(settings.store))
    if action == "doctor":
        from vlsafe.doctor.command import doctor

        return doctor(cells, grid.launcher, console)
    if action == "plan":
        plan = make_plan(open_sweep(folder, name, cells, grid.swept).cells)
        executor = local(plan, store, folder, survey(plan, store, mend=False), cells[0])
        if grid.launcher is None:
            executor.check()
        show_plan(executor, console)
        return 0
    tracking = cells[0].components["tracking"]
    tracking.check_ready()
    cluster = None
    if grid.launcher is not None:
        from vlsafe.cluster.launch import Cluster

        cluster = Cluster.ask(grid.launcher)
    with record_lock(folder):
        sweep = open_sweep(folder, name, cells, grid.swept)
        plan = make_plan(sweep.cells)
        found = survey(plan, store, mend=True)
        check_resolved({plan.stages[id].label: plan.stages[id].spec for id in found.to_run})
        check_models(plan, found)
        executor = local(plan, store, folder, found, cells[0])
        if cluster is None:
            executor.check()
        if found.to_run:
            store.check_writable(2 * found.bytes_needed)
        save_record(sweep)
    if cluster is not None and found.to_run:
        return cluster.launch(sweep, plan, found, store, cells[0], console)
    with followed(sweep, store, tracking, bool(found.to_run), console):
        if grid.hand_out is not None and found.to_run:
            return hand_out(sweep, cells, plan, found, store, grid.hand_out, console, began)
        return execute(sweep, executor, console, began)


def local(plan: Plan, store: Store, folder: Path, found: Survey, cell: Cell) -> Executor:
    """What runs the plan on this machine."""
    return Executor(plan, store, folder, cell.run, found, deepspeed_settings(cell))


def hand_out(
    sweep: Sweep,
    cells: Sequence[Cell],
    plan: Plan,
    found: Survey,
    store: Store,
    to: Callable[[Sequence[int], str], None],
    console: Console,
    began: float,
) -> int:
    from vlsafe.elsewhere import run_elsewhere
    from vlsafe.ending import announce, conclude
    from vlsafe.report.outputs import write_plan

    write_plan(sweep, plan, found, found.states(plan))
    announce(sweep, plan, found, console)
    outcome = run_elsewhere(sweep, cells, plan, found, store, to, console)
    states = {id: progress.state for id, progress in outcome.stages.items()}
    return conclude(sweep, plan, store, states, outcome, console, began)


def check_not_swept(swept: Sequence[str], cells: Sequence[Cell]) -> None:
    """Raises `ConfigError` for a swept setting that says where or how: one command has one of each."""
    aside = {
        f"{group}.{f.name}"
        for cell in cells
        for group, component in cell.components.items()
        for f in fields(component)
        if f.metadata.get("execution")
    }
    for name in swept:
        how = name in {f.name for f in fields(RunSettings)} - {"seed"} or name in aside
        if how or name.partition(".")[0] in ("tracking", "deepspeed"):
            raise ConfigError(f"{name}: one command has one value of it; only what changes results can be swept")


def check_models(plan: Plan, found: Survey) -> None:
    """Raises `ConfigError` where a model that is to be made needs something that is not installed."""
    for cell in plan.cells:
        if any(id in found.to_run and plan.stages[id].kind == "model" for id in cell.roles.values()):
            cell.cell.components["model"].check_ready()


def show_plan(executor: Executor, console: Console) -> None:
    from vlsafe.report.plan_view import plan_table, summary

    plan, found = executor.plan, executor.found
    console.print(plan_table(plan, found, console, {id: executor.needs(s) for id, s in plan.stages.items()}))
    for note in found.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(summary(plan, found, wall(executor, found.seconds)), soft_wrap=True)


def execute(sweep: Sweep, executor: Executor, console: Console, began: float) -> int:
    from vlsafe.ending import announce, conclude
    from vlsafe.report.live import View
    from vlsafe.report.outputs import write_plan
    from vlsafe.report.plan_view import summary

    plan, found, store = executor.plan, executor.found, executor.store
    if found.to_run:
        executor.pool.warm_up()
    states = found.states(plan)
    write_plan(sweep, plan, found, states)
    announce(sweep, plan, found, console, summary(plan, found, wall(executor, found.seconds)))
    outcome = Outcome({})
    if found.to_run:
        with View(plan, console, executor.run.live, time_left(executor)) as view:
            executor.on_change = view
            outcome = executor.execute()
        states |= {id: progress.state for id, progress in outcome.stages.items()}
    return conclude(sweep, plan, store, states, outcome, console, began)
