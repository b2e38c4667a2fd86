"""What of a plan is in the store, and how long the rest may take: from the manifests of earlier stages of the same class."""

from __future__ import annotations

import contextlib
import heapq
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from vlsafe.errors import CorruptArtifactError, StoreError
from vlsafe.execute.devices import Machine, Share
from vlsafe.execute.resources import Needs, together
from vlsafe.plan import Plan, Stage
from vlsafe.store import Store

RECENT = 200  # manifests of each kind that estimates look at


@dataclass
class Survey:
    to_run: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)  # what was found corrupt
    seconds: dict[str, float | None] = field(default_factory=dict)  # estimate for each stage to run; None: never seen
    bytes_needed: int = 0

    def states(self, plan: Plan) -> dict[str, str]:
        """That of each stage before anything runs: exists or pending."""
        return {id: "pending" if id in self.to_run else "exists" for id in plan.stages}


def survey(plan: Plan, store: Store, mend: bool) -> Survey:
    """Which stages must run. With `mend`, corrupt artifacts are moved aside, and what will be read is verified by hash."""
    found = Survey()

    def corrupt(error: CorruptArtifactError) -> None:
        found.notes.append(str(error))
        found.to_run.add(f"{error.stage}/{error.key}")
        if mend:
            store.quarantine(error.stage, error.key)

    for id, stage in plan.stages.items():
        try:
            if not store.exists(stage.kind, stage.key, stage.version):
                found.to_run.add(id)
        except CorruptArtifactError as error:
            corrupt(error)
    if mend:
        _verify_what_is_read(plan, store, found, corrupt)
    _estimate(plan, store, found)
    return found


def _verify_what_is_read(plan: Plan, store: Store, found: Survey, corrupt: Callable[[CorruptArtifactError], None]) -> None:
    # Parents after children: a parent found corrupt here will itself read its own parents.
    for id in reversed(list(plan.stages)):
        stage = plan.stages[id]
        read = stage.kind == "judge" or any(id in plan.stages[c].parents.values() for c in found.to_run)
        if read and id not in found.to_run:
            try:
                store.verify(stage.kind, stage.key, again=False)
            except CorruptArtifactError as error:
                corrupt(error)


def _estimate(plan: Plan, store: Store, found: Survey) -> None:
    if not found.to_run:
        return
    rates: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    kinds = {plan.stages[id].kind for id in found.to_run}
    for kind in kinds:
        for artifact in list(store.artifacts([kind]))[-RECENT:]:
            with contextlib.suppress(StoreError, KeyError, ZeroDivisionError, TypeError):
                manifest = store.manifest(kind, artifact.key)
                rates[manifest["cost"]["class"]].append(manifest["seconds"] / manifest["cost"]["units"])
                sizes[kind].append(sum(f["size"] for f in manifest["files"].values()))
    for id in found.to_run:
        stage = plan.stages[id]
        found.bytes_needed += max(sizes[stage.kind], default=0)
        if on_the_way(plan, id, found.to_run):
            found.seconds[id] = 0.0
            continue
        known = rates.get(stage.cost_class)
        found.seconds[id] = statistics.median(known) * stage.cost_units if known else None


def on_the_way(plan: Plan, id: str, to_run: Collection[str]) -> bool:
    """Whether a stage is a snapshot of a training that will run beyond it, so that it costs next to nothing of its own."""
    stage = plan.stages[id]
    return stage.step is not None and any(
        other.training_key == stage.training and (other.step is None or other.step > stage.step)
        for other in map(plan.stages.__getitem__, to_run)
    )


def wall_seconds(
    plan: Plan,
    groups: Sequence[Sequence[str]],
    seconds: Mapping[str, float],
    needs: Callable[[Stage], Needs],
    machine: Machine,
) -> float:
    """How long the groups take when each starts as soon as its parents and its share of the machine are free."""
    group_of = {id: i for i, group in enumerate(groups) for id in group}
    waits = {
        i: {group_of[p] for id in group for p in plan.stages[id].parents.values() if group_of.get(p, i) != i}
        for i, group in enumerate(groups)
    }
    wanted = [together(needs(plan.stages[id]) for id in group) for group in groups]
    machine = machine.empty()
    now, running, ended = 0.0, list[tuple[float, int, Share]](), set[int]()
    pending = list(range(len(groups)))
    while pending or running:
        for i, share in list(machine.choose((i, wanted[i]) for i in pending if waits[i] <= ended)):
            pending.remove(i)
            heapq.heappush(running, (now + sum(seconds.get(id, 0.0) for id in groups[i]), i, share))
        if not running:
            break
        now, i, share = heapq.heappop(running)
        machine.give_back(share)
        ended.add(i)
    return now
