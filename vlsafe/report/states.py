"""How a sweep's stages stand when nothing runs: by the store, and by what the last command that ran it recorded."""

from __future__ import annotations

from vlsafe.errors import CorruptArtifactError
from vlsafe.execute.survey import survey
from vlsafe.files import read_json
from vlsafe.plan import Plan
from vlsafe.report.outputs import Reason
from vlsafe.report.text import printable
from vlsafe.store import Store
from vlsafe.sweep import Sweep


def states_now(sweep: Sweep, plan: Plan, store: Store) -> tuple[dict[str, str], dict[str, Reason]]:
    """What is in the store, and of the rest why: what the last command recorded, or that an artifact is corrupt."""
    found = survey(plan, store, mend=False)
    reasons: dict[str, Reason] = {}
    states = found.states(plan)
    for id, stage in plan.stages.items():
        try:
            if store.path(stage.kind, stage.key).exists():
                store.exists(stage.kind, stage.key, stage.version)
                if stage.kind == "judge" and states[id] == "exists":
                    store.verify(stage.kind, stage.key, again=False)
        except CorruptArtifactError as error:
            states[id], reasons[id] = "pending", Reason(f"corrupt ({error.reason})", "")
    for id, state, reason in recorded(sweep):
        if states.get(id) == "pending" and state in ("failed", "skipped"):
            states[id] = state
            if reason.error:
                reasons.setdefault(id, reason)
    return states, reasons


def recorded(sweep: Sweep) -> list[tuple[str, str, Reason]]:
    """Stages as the last command left them in plan.json; none where that can't be read."""
    try:
        stages = read_json(sweep.folder / "plan.json")["stages"]
        return [
            (f"{s['stage']}/{s['key']}", str(s["state"]), Reason(printable(str(s.get("error", ""))), str(s.get("log", ""))))
            for s in stages
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
