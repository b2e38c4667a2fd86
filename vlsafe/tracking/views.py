"""A sweep's workspace and report in W&B, from what varies in it and which axes it was scored on."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from vlsafe.errors import ConfigError, VlsafeError
from vlsafe.eval.base import Axis
from vlsafe.files import read_json, write_json
from vlsafe.report.results import CHOICES
from vlsafe.sweep import Sweep
from vlsafe.tracking.runs import CURVE_AXIS, column, tag

FILE = "dashboard.json"  # ids of the views that were saved, so that the same ones are brought up to date
TRADE_OFFS = (("text_safety", "over_refusal"), ("multimodal_safety", "over_refusal"), ("multimodal_safety", "helpfulness"))
TRAINING = ("loss", "learning_rate", "grad_norm", "tokens_per_second")


@dataclass(frozen=True)
class Shown:
    """What a sweep has to show."""

    choices: tuple[str, ...]  # columns of the configuration that vary; all choices where none does
    axes: tuple[str, ...]
    curves: tuple[str, ...]  # metrics that checkpoints during adaptation were scored on


def shown(sweep: Sweep) -> Shown:
    """Raises `ConfigError` for a sweep without results."""
    try:
        with (sweep.folder / "results.csv").open(newline="", encoding="utf-8") as handle:
            lines = list(csv.DictReader(handle))
    except OSError:
        lines = []
    if not lines:
        raise ConfigError(f"sweep '{sweep.name}' has no results yet: run it first")
    axes = sweep.extra_axes
    names = [*CHOICES, *(name for name in axes if name in lines[0])]
    varying = [column(name) for name in names if len({line[name] for line in lines}) > 1]
    curves = {f"{line['role']}/{line['metric']}/{line['benchmark']}" for line in lines if line["step"]}
    scored = {line["axis"] for line in lines if line["value"]}
    return Shown(tuple(varying or CHOICES), tuple(axis for axis in get_args(Axis) if axis in scored), tuple(sorted(curves)))


def save_views(sweep: Sweep, project: str, entity: str | None) -> dict[str, str]:
    """The addresses of the workspace and the report. Raises `VlsafeError` where W&B doesn't answer as it should."""
    import wandb

    what = shown(sweep)
    path = sweep.folder / FILE
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = read_json(path)
    try:
        owner = entity or wandb.Api(timeout=15).default_entity
        if not owner:
            raise ConfigError("W&B knows no default user or team for this key: set --entity")
        ids = known.setdefault(f"{owner}/{project}", {})
        view = workspace(sweep, what, owner, project)
        view._internal_name, view._internal_id = ids.get("workspace_name", ""), ids.get("workspace", "")
        view.save()
        ids |= {"workspace": view._internal_id, "workspace_name": view._internal_name}
        write_json(path, known)
        page = report(sweep, what, owner, project)
        page.id = ids.get("report", "")
        page.save()
        ids["report"] = page.id
        write_json(path, known)
    except VlsafeError:
        raise
    except Exception as error:  # the package raises what its server says, in many ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(
            f"the dashboard could not be saved ({reason}): check the key, --entity and --project, and that the runs are there "
            f"(python launch/dashboard.py {sweep.name} sync)"
        ) from error
    return {"workspace": str(view.url), "report": str(page.url)}


def panels(what: Shown) -> dict[str, list[Any]]:
    """By section, in order."""
    import wandb_workspaces.reports.v2 as wr

    def mean(axis: str) -> Any:
        return wr.SummaryMetric(f"final/mean/{axis}")

    coordinates = [wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name) for name in what.choices]
    coordinates += [wr.ParallelCoordinatesPlotColumn(mean(axis), display_name=axis) for axis in what.axes]
    scatters = [
        wr.ScatterPlot(title=f"{x} against {y}", x=mean(x), y=mean(y), layout=wr.Layout(w=8, h=8))
        for x, y in TRADE_OFFS
        if {x, y} <= set(what.axes)
    ]
    sections: dict[str, list[Any]] = {
        "Choices and what they give": [wr.ParallelCoordinatesPlot(columns=coordinates, layout=wr.Layout(w=24, h=9))],
        "Trade-off": scatters,
        "During adaptation": [
            wr.LinePlot(title=name, x=CURVE_AXIS, y=[name], layout=wr.Layout(w=8, h=6)) for name in what.curves
        ],
        "Cells": [wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=12))],
        "Training": [wr.LinePlot(title=name, x="Step", y=[name], layout=wr.Layout(w=6, h=6)) for name in TRAINING],
    }
    return {name: drawn for name, drawn in sections.items() if drawn}


def columns(what: Shown) -> list[str]:
    """Of the run table."""
    return [*(f"config:{name}" for name in what.choices), *(f"summary:final/mean/{axis}" for axis in what.axes)]


def workspace(sweep: Sweep, what: Shown, entity: str, project: str) -> Any:
    import wandb_workspaces.workspaces as ws

    sections = [ws.Section(name=name, panels=drawn, is_open=True) for name, drawn in panels(what).items()]
    return ws.Workspace(
        entity=entity, project=project, name=f"vlsafe {sweep.name}", sections=sections, auto_generate_panels=False,
        settings=ws.WorkspaceSettings(max_runs=1000),
        runset_settings=ws.RunsetSettings(filters=[ws.Tags().isin([tag(sweep.name)])], pinned_columns=columns(what)),
    )  # fmt: skip


def report(sweep: Sweep, what: Shown, entity: str, project: str) -> Any:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    def runset(name: str, kind: str, pinned: Sequence[str] = ()) -> Any:
        pinned = [f"{c}.value" if c.startswith("config:") else c for c in pinned]
        mine = [expr.Tags().isin([tag(sweep.name)]), expr.Metric("JobType") == kind]
        return wr.Runset(entity=entity, project=project, name=name, filters=mine, pinned_columns=pinned)

    blocks: list[Any] = [
        wr.P(
            f"Sweep {sweep.name}. Means over an axis' benchmarks; single benchmarks with n and intervals are in each run's "
            "table 'results', and in results.csv, which is the record."
        )
    ]
    for title, drawn in panels(what).items():
        cells = runset("cells", "cell", columns(what)) if title != "Training" else runset("training", "training")
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[cells], panels=drawn)]
    return wr.Report(project=project, entity=entity, title=f"vlsafe {sweep.name}"[:128], blocks=blocks, width="fluid")
