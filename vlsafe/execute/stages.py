"""From a stage's kind and settings to the component that does its work. The only place that knows which kind calls what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlsafe.registry import make
from vlsafe.stage import StageContext


def run_stage(kind: str, settings: Mapping[str, Any], ctx: StageContext) -> None:
    if kind == "model":
        source = make("model", settings["model"])
        (source.build_unaligned if settings["unaligned"] else source.build)(ctx)
    elif kind == "adaptation":
        make("adaptation", settings["adaptation"]).run(training_data(settings), ctx)
    elif kind == "safety_tune":
        adaptation = make("adaptation", settings["adaptation"]) if "adaptation" in settings else None
        tuning = make("safety_tune", settings["safety_tune"])
        tuning.run(training_data(settings), ctx, text_only=settings["text_only"], adaptation=adaptation)
    elif kind == "merge":
        from vlsafe.merge.stage import run as merge

        merge(make("merge", settings["merge"]), ctx)
    elif kind == "generate":
        from vlsafe.eval.generate import run as generate

        generate(make("benchmark", settings["benchmark"]), make("engine", settings["engine"]), settings["limit"], ctx)
    elif kind == "judge":
        from vlsafe.eval.judge_stage import run as judge

        judge(make("judge", settings["judge"]), ctx)
    else:
        raise ValueError(f"no stage of kind '{kind}'")


def training_data(settings: Mapping[str, Any]) -> Any:
    """None for a stage that asks for no rows."""
    return make("data", settings["data"]) if "data" in settings else None
