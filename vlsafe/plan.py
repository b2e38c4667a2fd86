"""The plan: the graph of unique stages that a set of cells needs, with every key known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlsafe.cells import Cell, at_home, carrier_role, merged_roles, purposes, without_roles, worker_settings
from vlsafe.eval.base import Axis
from vlsafe.keys import digest, stage_key
from vlsafe.settings import settings_of, spec_of
from vlsafe.stage import STAGE_KINDS

# Raise a stage's version when the same spec gives another result: old artifacts are then left alone, not reused.
SCHEMA_VERSIONS = {"model": 1, "adaptation": 1, "safety_tune": 1, "merge": 1, "generate": 1, "judge": 1}


@dataclass(frozen=True)
class Stage:
    """One pure step. `spec` and the parents' keys make its key; `settings` is what the worker builds the components from."""

    kind: str
    key: str
    spec: Mapping[str, Any]
    settings: Mapping[str, Any]
    parents: Mapping[str, str]  # the name that the stage uses → the parent's id
    label: str
    cost_class: str  # stages of one class take about the same time a unit
    cost_units: float
    family: str | None = None  # artifacts of one family differ in `limit` only
    training: str | None = None  # for a snapshot: the key of the training that it is taken from,
    step: int | None = None  # and after which step of its last phase
    verdicts: str | None = None  # trainings with one filter on one kind of data: they share what its judge says

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.key}"

    @property
    def training_key(self) -> str:
        """The key of the training that makes it: a snapshot's is not its own."""
        return self.training or self.key

    @property
    def version(self) -> int:
        return SCHEMA_VERSIONS[self.kind]


@dataclass(frozen=True)
class Evaluation:
    """One benchmark asked of one role's model: where its rows in the results come from."""

    role: str
    benchmark: str
    axis: Axis
    judge: str
    judge_version: int
    stage: str  # id of the judge stage
    step: int | None = None  # of the snapshot that is asked; None is the final model


@dataclass(frozen=True)
class CellPlan:
    cell: Cell
    roles: Mapping[str, str]  # role → id of the stage that makes its model
    snapshots: Mapping[int, str]  # step of the adaptation → id of the stage that keeps the model there
    evaluations: tuple[Evaluation, ...]
    final: str  # the role that stands for the cell
    collapsed: bool  # a merge was asked for, of one model with itself

    def stages(self) -> set[str]:
        return {*self.roles.values(), *self.snapshots.values(), *(e.stage for e in self.evaluations)}


@dataclass
class Plan:
    """`stages` is in an order in which parents come first."""

    stages: dict[str, Stage] = field(default_factory=dict)
    cells: list[CellPlan] = field(default_factory=list)

    def add(self, stage: Stage) -> str:
        self.stages.setdefault(stage.id, stage)
        return stage.id

    def children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {id: [] for id in self.stages}
        for id, stage in self.stages.items():
            for parent in dict.fromkeys(stage.parents.values()):
                children[parent].append(id)
        return children

    def below(self, ids: Iterable[str]) -> set[str]:
        """Everything that depends on `ids`, without themselves."""
        children, found, todo = self.children(), set[str](), list(ids)
        while todo:
            for child in children[todo.pop()]:
                if child not in found:
                    found.add(child)
                    todo.append(child)
        return found

    def cells_of(self) -> dict[str, list[int]]:
        """For each stage, the positions of the cells that need it, by way of any of its descendants."""
        needed: dict[str, list[int]] = {id: [] for id in self.stages}
        for position, cell in enumerate(self.cells):
            todo, seen = list(cell.stages()), set[str]()
            while todo:
                id = todo.pop()
                if id not in seen:
                    seen.add(id)
                    needed[id].append(position)
                    todo.extend(self.stages[id].parents.values())
        return needed

    def counts(self) -> dict[str, int]:
        return {kind: sum(s.kind == kind for s in self.stages.values()) for kind in STAGE_KINDS}


def units(component: Any) -> float:
    """How much work a component's stage is, in units of its own class: training steps, for one."""
    return float(getattr(component, "cost_units", 1.0))


def make_plan(cells: Sequence[Cell]) -> Plan:
    plan = Plan()
    for cell in cells:
        plan.cells.append(_plan_cell(plan, cell))
    return plan


def _stage(
    plan: Plan,
    kind: str,
    spec: Mapping[str, Any],
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    label: str,
    cost: tuple[str, float],
    family: str | None = None,
    training: str | None = None,
    step: int | None = None,
    verdicts: str | None = None,
) -> str:
    keys = {name: plan.stages[id].key for name, id in parents.items()}
    key = stage_key(kind, SCHEMA_VERSIONS[kind], spec, keys)
    return plan.add(Stage(kind, key, spec, settings, parents, label, cost[0], cost[1], family, training, step, verdicts))


def _plan_cell(plan: Plan, cell: Cell) -> CellPlan:
    made: dict[str, str] = {}
    for role in cell.roles.roles:
        parents = {"model": made[role.parent]} if role.parent else {}
        made[role.name] = _plan_role(plan, cell, role.name, parents)
    snapshots = _plan_snapshots(plan, cell, made)
    final, collapsed = cell.roles.unmerged, False
    sees = {role.name: role.sees_images for role in cell.roles.roles}
    if cell.components["merge"].merges:
        models = [made[name] for name in merged_roles(cell)]
        collapsed = len(models) > 1 and len(set(models)) == 1
        if not collapsed:
            made["merged"] = _plan_merge(plan, cell, made, models)
            sees["merged"] = sees[carrier_role(cell)]
            final = "merged"
    evaluations = [
        *(e for step, id in snapshots.items() for e in _plan_evaluations(plan, cell, "adapted", id, True, step)),
        *(e for role, id in made.items() for e in _plan_evaluations(plan, cell, role, id, sees[role])),
    ]
    return CellPlan(cell, made, snapshots, tuple(evaluations), final, collapsed)


def _plan_snapshots(plan: Plan, cell: Cell, made: Mapping[str, str]) -> dict[int, str]:
    """Intermediate models of the cell's adaptation: by-products of its training, each with a key of its own."""
    if "adapted" not in made:
        return {}
    final, kept = plan.stages[made["adapted"]], {}
    for step, steps in cell.components["adaptation"].snapshots().items():
        spec = {**final.spec, "step": step}
        kept[step] = _stage(
            plan, final.kind, spec, final.settings, final.parents, f"{final.label} @{step}", (final.cost_class, float(steps)),
            training=final.key, step=step, verdicts=final.verdicts,
        )  # fmt: skip
    return kept


def _plan_role(plan: Plan, cell: Cell, name: str, parents: Mapping[str, str]) -> str:
    role = cell.roles[name]
    model, adaptation, tuning, data = (cell.components[g] for g in ("model", "adaptation", "safety_tune", "data"))
    option = cell.choices["model"]
    if role.stage == "model":
        unaligned = name == "unaligned"
        settings = {"model": settings_of(model), "unaligned": unaligned}
        if unaligned:
            spec = {"model": model.unaligned_spec(), "unaligned": True}
            label = f"{option} (unaligned)"
            return _stage(plan, "model", spec, settings, parents, label, (label, model.unaligned_cost_units))
        return _stage(plan, "model", {"model": spec_of(model)}, settings, parents, option, (option, units(model)))
    groups: dict[str, Any] = {}
    if role.stage == "adaptation" or role.joint:
        groups["adaptation"] = adaptation
    if role.stage == "safety_tune":
        groups["safety_tune"] = tuning
    asked = purposes(groups)
    if asked != ():  # a released model asks for no rows
        groups = {"data": data.used(asked), **groups}
        data = groups["data"]
    spec = {group: spec_of(component) for group, component in groups.items()}
    if "data" in groups:
        spec |= data.fingerprints() | {"data": data.spec_for(role.stage, role.joint)}
    verdicts = None
    if "adaptation" in groups:
        spec |= adaptation.filter_spec()
        verdicts = _verdicts(adaptation, data)
    settings = {group: settings_of(component) for group, component in groups.items()}
    if "adaptation" not in groups and role.stage == "safety_tune" and filters_helpful(adaptation, tuning, asked, data):
        spec |= adaptation.filter_spec()
        verdicts = _verdicts(adaptation, cell.components["data"])
        settings["adaptation"] = settings_of(adaptation)
    if role.stage == "safety_tune":
        # The order stands in the parents; what it changes in the tuning itself is said here.
        if role.joint:
            spec["safety_tune"] = tuning.joint_spec()
            if tuning.version != 1:
                spec["safety_tune"]["version"] = tuning.version
        spec["safety_tune"].pop("order", None)
        settings["text_only"] = spec["text_only"] = not role.sees_images
        settings["joint"] = spec["joint"] = role.joint
    chain = [cell.choices[g] for g in ("adaptation", "safety_tune") if g in groups]
    cost = sum(units(groups[g]) for g in ("adaptation", "safety_tune") if g in groups)
    label = plan.stages[parents["model"]].label + " › " + "+".join(chain)
    cost_of = ("+".join([option, *chain]), cost)
    return _stage(plan, role.stage, spec, settings, parents, label, cost_of, verdicts=verdicts)


def filters_helpful(adaptation: Any, tuning: Any, asked: Any, data: Any) -> bool:
    """Whether a tuning mixes in rows of the adaptation that are filtered there: what was removed must not come back."""
    theirs = tuning.mixes_instructions and asked is not None and "instruct" in asked and bool(adaptation.filter_spec())
    return theirs and data.helpful_is_instruct


def _verdicts(adaptation: Any, data: Any) -> str | None:
    """A name for what an adaptation's filter reads, whatever is trained on it: the judge, and where its rows come from."""
    if not adaptation.filter_spec():
        return None
    read = data.used(adaptation.purposes())
    return digest({**adaptation.filter_spec(), **read.fingerprints(), "data": read.spec_for("adaptation")})


def _plan_merge(plan: Plan, cell: Cell, made: Mapping[str, str], models: Sequence[str]) -> str:
    method = cell.components["merge"].resolved(len(models))
    parents = {f"model_{i}": id for i, id in enumerate(models)} | {"carrier": made[carrier_role(cell)]}
    if method.needs_base:
        parents["base"] = made[method.base]
    spec = {"merge": without_roles(method), "weights": list(method.weights)}
    last = max((plan.stages[id].label for id in parents.values()), key=len)
    return _stage(
        plan, "merge", spec, {"merge": worker_settings(method, method.weights)}, parents,
        f"{last} › {cell.choices['merge']}", (f"{cell.choices['model']}+{method.component_name}", len(models)),
    )  # fmt: skip


def _plan_evaluations(
    plan: Plan, cell: Cell, role: str, model: str, sees_images: bool, step: int | None = None
) -> list[Evaluation]:
    suite, judge, engine = (cell.components[g] for g in ("eval", "judge", "engine"))
    engine = engine if sees_images else engine.without_pictures()
    evaluations = []
    for benchmark in [at_home(benchmark, cell.run) for benchmark in suite.build()]:
        if benchmark.needs_image and not sees_images:
            continue
        name = benchmark.title
        asking = suite.engine_for(name, engine)
        asked = {"benchmark": spec_of(benchmark) | {"version": benchmark.version}, "engine": spec_of(asking)}
        family = digest({"family": asked, "version": SCHEMA_VERSIONS["generate"], "model": plan.stages[model].key})
        generate = _stage(
            plan, "generate", asked | {"limit": suite.limit},
            {"benchmark": settings_of(benchmark), "engine": settings_of(asking), "limit": suite.limit},
            {"model": model}, f"{plan.stages[model].label} · {name}",
            (f"{cell.choices['model']}+{engine.component_name}+{name}", float(suite.limit or 1000)), family,
        )  # fmt: skip
        asked_of = {"judge": spec_of(judge) | {"version": judge.version}}
        judged = {"family": asked_of, "version": SCHEMA_VERSIONS["judge"], "responses": family}
        stage = _stage(
            plan, "judge", asked_of, {"judge": settings_of(judge)},
            {"responses": generate}, f"{plan.stages[generate].label} · {judge.component_name}",
            (judge.component_name, float(suite.limit or 1000)), digest(judged) if judge.asks_model else None,
        )  # fmt: skip
        evaluations.append(Evaluation(role, name, benchmark.axis, judge.component_name, judge.version, stage, step))
    return evaluations
