"""This machine's cores and GPUs, and who has them: each running task has GPUs of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vlsafe.errors import ConfigError
from vlsafe.execute.resources import Needs
from vlsafe.plan import Stage

MAX_JOBS = 8  # tasks without a GPU, by default; each worker holds a model
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Share:
    """What a running task has of the machine."""

    needs: Needs
    gpus: tuple[str, ...]  # as `CUDA_VISIBLE_DEVICES` names them; all ranks of the task see the same ones

    @property
    def threads(self) -> int:
        return self.needs.processes * self.needs.threads


@dataclass
class Machine:
    """`jobs` tasks at a time; None for as many as the GPUs and cores allow. A task that is alone may have more threads than
    there are cores."""

    cores: int
    gpus: Sequence[str]
    jobs: int | None
    shares: list[Share] = field(default_factory=list)

    def choose(self, wanted: Iterable[tuple[T, Needs]]) -> Iterator[tuple[T, Share]]:
        """Those of `wanted` that may start now, the first one first. One that waits for GPUs is not overtaken by others
        that take some, else many small tasks would keep a large one waiting for ever."""
        held = False
        for what, needs in wanted:
            if held and needs.gpus:
                continue
            if self._fits(needs):
                yield what, self._take(needs)
            else:
                held |= needs.gpus > 0

    def give_back(self, share: Share) -> None:
        self.shares.remove(share)

    def empty(self) -> Machine:
        """The same machine with nothing running."""
        return Machine(self.cores, self.gpus, self.jobs)

    def _free(self) -> list[str]:
        taken = {gpu for share in self.shares for gpu in share.gpus}
        return [gpu for gpu in self.gpus if gpu not in taken]

    def _fits(self, needs: Needs) -> bool:
        if not self.shares:
            return True
        if self.jobs is None:
            without = sum(not share.gpus for share in self.shares)
            room = needs.gpus > 0 or without < min(self.cores, MAX_JOBS)
        else:
            room = len(self.shares) < self.jobs
        threads = sum(share.threads for share in self.shares) + needs.processes * needs.threads
        return room and threads <= self.cores and needs.gpus <= len(self._free())

    def _take(self, needs: Needs) -> Share:
        share = Share(needs, tuple(self._free()[: needs.gpus]))
        self.shares.append(share)
        return share


def check_fits(stages: Iterable[tuple[Stage, Needs]], gpus: Sequence[str]) -> None:
    """Raises `ConfigError` for what can't run on this machine, whatever ends before."""
    for stage, needs in stages:
        if needs.nodes > 1:
            raise ConfigError(
                f"num_nodes={needs.nodes}: hydra/launcher=local is this machine alone; set hydra/launcher=slurm, or num_nodes=1"
            )
        if needs.gpus > len(gpus):
            setting = "engine.num_processes" if stage.kind == "generate" else "num_processes"
            raise ConfigError(
                f"{setting}={needs.processes}: each process has a GPU of its own, and there are {len(gpus)} here "
                f"({', '.join(gpus)}); set {setting}={len(gpus)} or less, or device=cpu"
            )
