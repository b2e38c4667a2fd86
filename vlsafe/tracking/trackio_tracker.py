"""Runs in Trackio's local database under `outputs/trackio`. Nothing leaves the machine.

Trackio has rows only: what W&B calls a summary, and the tables, are a run's last row. A run whose last row is there already is
written anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsafe.tracking.base import OpenRun, Run

LAST = "status"  # in the last row, and in no other


class TrackioTracker:
    def __init__(self, outputs: Path, project: str) -> None:
        # Read when the package is imported. It would ask the hub for the user's name, too.
        os.environ.setdefault("TRACKIO_DIR", str(outputs / "trackio"))
        os.environ["HF_HUB_OFFLINE"] = "1"
        self.project, self.folder = project, os.environ["TRACKIO_DIR"]

    def where(self) -> str:
        return self.folder

    def open(self, run: Run, steps: Mapping[str, int]) -> OpenRun:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        SQLiteStorage.validate_project_name(self.project)
        rows: list[dict[str, Any]] = SQLiteStorage.get_logs(self.project, run.name, run_id=run.id)
        if any(LAST in row for row in rows):
            SQLiteStorage.delete_run(self.project, run.name, run_id=run.id)
            rows = []
        config = {**run.config, "kind": run.kind, "tags": list(run.tags)}
        # Not `trackio.init`: it knows one run at a time, and gives ids of its own.
        opened = trackio.Run(
            url=None, project=self.project, client=None, name=run.name, run_id=run.id, group=run.group, config=config
        )
        return OpenTrackioRun(opened, max((row["step"] + 1 for row in rows), default=0))


class OpenTrackioRun:
    def __init__(self, opened: Any, next_step: int) -> None:
        self.opened, self.next_step = opened, next_step

    def log(self, row: Mapping[str, Any]) -> None:
        self.opened.log(dict(row), step=self.next_step)
        self.next_step += 1

    def finish(self, run: Run) -> None:
        import trackio

        tables = {name: trackio.Table(columns=list(table.columns), data=table.rows()) for name, table in run.tables.items()}
        self.opened.log({**run.summary, **tables}, step=self.next_step)
        with contextlib.redirect_stdout(None):
            self.opened.finish()
