"""`launch/dashboard.py`: a saved workspace and a report in W&B for a sweep, and sending its records again.

python launch/dashboard.py SWEEP         builds both, or brings those that it built before up to date
python launch/dashboard.py SWEEP sync    sends what was not sent yet; with --resend, everything
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vlsafe.cells import RunSettings
from vlsafe.errors import ConfigError
from vlsafe.store import Store
from vlsafe.sweep import Sweep, check_name, load_sweep
from vlsafe.tracking import credentials
from vlsafe.tracking.base import Tracking
from vlsafe.tracking.components import WandbTracking
from vlsafe.tracking.follow import Follower


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="launch/dashboard.py", description="W&B's view of a sweep.")
    parser.add_argument("sweep", help="the sweep's name")
    parser.add_argument(
        "action", nargs="?", choices=("build", "sync"), default="build", help="build views (default), or send runs"
    )
    parser.add_argument("--outputs", default="outputs", help="the folder with sweeps/ in it (default: outputs)")
    parser.add_argument("--store", help="the store's folder (default: the one that the sweep ran with)")
    parser.add_argument("--resend", action="store_true", help="with sync: send what was sent before, too")
    parser.add_argument("--project", help="W&B project (default: the one that the sweep was tracked in)")
    parser.add_argument("--entity", help="W&B user or team (default: likewise)")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    check_name(options.sweep)
    sweep = load_sweep(Path(options.outputs).absolute() / "sweeps" / options.sweep)
    tracking = tracking_of(sweep, options.project, options.entity)
    if options.action == "sync":
        if isinstance(tracking, WandbTracking) and tracking.mode == "offline":  # said of where it ran, not of here
            tracking = dataclasses.replace(tracking, mode="auto")
        return sync(sweep, Store(Path(options.store or store_of(sweep))), tracking, options.resend, console)
    return build(sweep, tracking, console)


def tracking_of(sweep: Sweep, project: str | None, entity: str | None) -> Tracking:
    """The tracking of the sweep's last cell that has any, else the default."""
    asked = [c.components["tracking"] for c in sweep.cells if c.choices.get("tracking") != "none"]
    tracking: Tracking = asked[-1] if asked else WandbTracking()
    if isinstance(tracking, WandbTracking) and (project or entity):
        return WandbTracking(
            tracking.mode, project or tracking.project, entity or tracking.entity, tracking.upload_text, tracking.wait_seconds
        )
    return tracking


def store_of(sweep: Sweep) -> str:
    run: RunSettings = sweep.cells[-1].run
    return run.store


def sync(sweep: Sweep, store: Store, tracking: Tracking, again: bool, console: Console) -> int:
    tracking.check_ready()
    follower = Follower(sweep.folder, store, tracking, console, again)
    if follower.destination is None:
        raise ConfigError("WANDB_MODE=disabled: nothing is sent; unset it")
    status = follower.finish(None)
    if status is None:
        kept = (
            ""
            if follower.destination.online or not isinstance(tracking, WandbTracking)
            else (f" to files for `wandb sync` (no key for {credentials.host()}, or WANDB_MODE=offline)")
        )
        console.print(Text(f"tracking: everything was sent before{kept}; --resend sends it again", style="dim"), soft_wrap=True)
        return 0
    return 0 if status.complete else 1


def build(sweep: Sweep, tracking: Tracking, console: Console) -> int:
    if not isinstance(tracking, WandbTracking):
        raise ConfigError("this sweep is tracked by trackio, which has its own view: TRACKIO_DIR=outputs/trackio trackio show")
    if not credentials.there():
        raise ConfigError(f"no key for {credentials.host()}: set WANDB_API_KEY or run `wandb login`")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("the package wandb-workspaces is not installed: pip install vlsafe[dashboards]")
    from vlsafe.tracking.views import save_views

    for kind, url in save_views(sweep, tracking.project, tracking.entity).items():
        console.print(Text(f"{kind}: {url}"), soft_wrap=True)
    return 0
