"""Runs in Weights & Biases: sent at once with a key, else written under `outputs/wandb` for `wandb sync`.

W&B appends: a run that is sent twice would show its curve twice. So an online run asks the server where it stopped, an offline
run replaces the one that was written before, and starts after the rows that the server is known to have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsafe.tracking.base import OpenRun, Run, TrackerDown

# W&B stops nothing here: it runs in a process of its own and may take this long to say that it can't be reached.
INIT_SECONDS = 8.0
FINISH_SECONDS = 120.0
NOT_LOOKED_AT = {  # what W&B would collect by itself: our manifests hold it, and paths and host names are nobody's business
    "console": "off", "disable_git": True, "disable_code": True, "save_code": False, "disable_job_creation": True,
    "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False,
}  # fmt: skip


class WandbTracker:
    def __init__(self, outputs: Path, project: str, entity: str | None, online: bool) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_DATA_DIR", str(outputs / "wandb" / ".data"))  # tables wait here until they are synced
        (outputs / "wandb").mkdir(parents=True, exist_ok=True)
        self.outputs, self.project, self.entity, self.online = outputs, project, entity, online
        self.url = ""

    def where(self) -> str:
        return self.url if self.online else str(self.outputs / "wandb")

    def open(self, run: Run, steps: Mapping[str, int]) -> OpenRun:
        import wandb
        from wandb.errors import Error

        earlier = self.earlier(run.id)
        settings = wandb.Settings(silent=True, symlink=False, init_timeout=INIT_SECONDS, host="-", **NOT_LOOKED_AT)
        settings.finish_timeout, settings.finish_timeout_raises = FINISH_SECONDS, True
        try:
            opened = wandb.init(
                mode="online" if self.online else "offline", project=self.project, entity=self.entity, dir=str(self.outputs),
                id=run.id, name=run.name, group=run.group, job_type=run.kind, tags=list(run.tags), config=dict(run.config),
                resume="allow", reinit="create_new", settings=settings,
            )  # fmt: skip
        except (Error, OSError) as error:
            raise TrackerDown(" ".join(str(error).split())) from error
        if self.online:
            self.url = str(opened.project_url or self.url)
        for pattern, axis in run.axes.items():
            opened.define_metric(axis, hidden=True)
            opened.define_metric(pattern, step_metric=axis)
        sent = opened.starting_step if self.online else self.sent(run.id, steps)
        return OpenWandbRun(opened, sent, self.online, earlier)

    def earlier(self, id: str) -> list[Path]:
        """Folders of the same run that another one takes the place of: all but what the user synced."""
        found = (self.outputs / "wandb").glob(f"*run-*-{id}")
        return [p for p in found if p.is_dir() and not any(p.glob("*.wandb.synced"))]

    def sent(self, id: str, steps: Mapping[str, int]) -> int:
        """Rows that the server has although this process is offline: sent online before, or by `wandb sync`."""
        synced = any((self.outputs / "wandb").glob(f"offline-run-*-{id}/*.wandb.synced"))
        return max((n for name, n in steps.items() if synced or not name.startswith("wandb offline")), default=0)


class OpenWandbRun:
    def __init__(self, opened: Any, next_step: int, online: bool, earlier: list[Path]) -> None:
        self.opened, self.next_step, self.online, self.earlier = opened, next_step, online, earlier

    def log(self, row: Mapping[str, Any]) -> None:
        self.opened.log(dict(row), step=self.next_step)
        self.next_step += 1

    def finish(self, run: Run) -> None:
        import wandb

        self.opened.config.update(dict(run.config), allow_val_change=True)
        self.opened.summary.update(dict(run.summary))
        for name, table in run.tables.items():
            filled = wandb.Table(columns=list(table.columns), data=table.rows(), allow_mixed_types=True)
            self.opened.summary[name] = filled
        try:
            self.opened.finish(exit_code=0 if run.state == "done" else 1)
        except (TimeoutError, OSError) as error:
            raise TrackerDown(f"no answer within {FINISH_SECONDS:.0f} s") from error
        # Online the local copy is of no more use; offline this one stands for the earlier ones.
        with contextlib.suppress(OSError):
            for folder in [*self.earlier, *([Path(self.opened.dir).parent] if self.online else [])]:
                shutil.rmtree(folder, ignore_errors=True)
