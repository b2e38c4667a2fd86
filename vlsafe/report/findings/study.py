"""What the page is about: two sweeps read back from the store, and the claims judged on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlsafe.errors import StoreError
from vlsafe.execute.survey import survey
from vlsafe.files import read_json
from vlsafe.plan import Plan, make_plan
from vlsafe.report.claims import Claim, compare_helpfulness, judge_claims
from vlsafe.report.outputs import cell_results, cell_status
from vlsafe.report.results import Scored, plain, score
from vlsafe.store import Store
from vlsafe.sweep import Sweep, load_sweep

GRID = ("model", "data", "adaptation", "safety_tune", "safety_tune.order", "merge", "seed")


@dataclass(frozen=True)
class Ran:
    """A sweep, its plan and its scored records."""

    sweep: Sweep
    plan: Plan = field(repr=False)
    states: Mapping[str, str] = field(repr=False)
    scored: list[Scored] = field(repr=False)

    @property
    def undone(self) -> list[str]:
        """Cells of which something failed or is not there yet."""
        return [self.sweep.cell_name(c.cell) for c in self.plan.cells if cell_status(c, self.states) != "done"]

    @property
    def command(self) -> str:
        """The command that runs the sweep: its preset, where the name says one, else what it swept."""
        preset = re.fullmatch(r"experiment-(\w+)", self.sweep.name)
        if preset:
            return f"python launch/train.py -m +experiment={preset[1]}"
        swept = [f"{name}={','.join(self.values(name))}" for name in dict.fromkeys([*GRID, *self.sweep.axes])]
        return " ".join(["python launch/train.py -m", f"sweep={self.sweep.name}", *swept])

    def values(self, name: str) -> list[str]:
        """The values that a setting has over the cells, in order; cells without it aside."""
        found = (c.seed if name == "seed" else c.value(name) for c in self.sweep.cells)
        return list(dict.fromkeys(plain(value) for value in found if value is not None))


@dataclass(frozen=True)
class Study:
    main: Ran
    control: Ran
    claims: list[Claim]
    control_claims: list[Claim]

    def of(self, finding: int) -> list[Claim]:
        return [c for c in self.claims if c.finding == finding]


def read(name: str, outputs: Path, store: Path) -> Ran:
    """A sweep's records as they lie in the store. Raises `ConfigError` where there is no such sweep, `StoreError` where there
    is no store."""
    sweep = load_sweep(outputs.absolute() / "sweeps" / name)
    if not store.is_dir():
        raise StoreError(f"no store at {store}: set --store FOLDER")
    plan = make_plan(sweep.cells)
    opened = Store(store)
    absent = survey(plan, opened, mend=False).to_run
    known = last_states(sweep)
    undone = {id: state if (state := known.get(id)) in ("failed", "skipped") else "pending" for id in absent}
    states = {id: undone.get(id, "exists") for id in plan.stages}
    return Ran(sweep, plan, states, score(cell_results(sweep, plan, states, opened)))


def last_states(sweep: Sweep) -> dict[str, str]:
    """How the stages stood when the sweep last ran: the store alone can't tell what failed from what was never tried."""
    try:
        stages = read_json(sweep.folder / "plan.json")["stages"]
        return {f"{s['stage']}/{s['key']}": str(s["state"]) for s in stages}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def judge(main: Ran, control: Ran) -> Study:
    """The findings on the main world's sweep; on the control's only what a control is for."""
    controls = [c for c in judge_claims(control.scored, control=True) if c.finding is None]
    return Study(main, control, judge_claims(main.scored), [*controls, *compare_helpfulness(main.scored, control.scored)])


def differences(main: Ran, control: Ran) -> list[str]:
    """Settings of the control that no cell of the main sweep has, as 'name: there (main: here)'."""
    ours, theirs = _values(main), _values(control)
    said = []
    for name, values in theirs.items():
        new = [v for v in values if v not in ours.get(name, [])]
        if new and name != "seed":
            said.append(f"{name} {', '.join(new)}" + (f" (main: {', '.join(ours[name])})" if name in ours else ""))
    return said


def _values(ran: Ran) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for cell in ran.sweep.cells:
        for name, value in cell.flat().items():
            found.setdefault(name, {})[plain(value)] = None
    return {name: list(values) for name, values in found.items()}
