"""How a global batch is split: over ranks, and over the micro-batches that a rank takes one after the other. Batch sizes are
global and the split is exact, so the number of GPUs never changes the experiment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from vlsafe.errors import ConfigError
from vlsafe.ranks import Ranks
from vlsafe.stage import Execution
from vlsafe.train.deepspeed import Zero, zero_of
from vlsafe.train.optimization import Optimization


@dataclass(frozen=True)
class Split:
    processes: int
    micro: int  # rows that a rank takes at once
    accumulation: int  # how many micro-batches make a rank's share of a step


@dataclass(frozen=True)
class Way:
    """How a stage trains: in which ranks, with what of DeepSpeed."""

    ranks: Ranks
    zero: Zero | None
    micro_batch_size: int | None
    gradient_checkpointing: bool
    device: str  # "cpu" or "cuda"

    @property
    def layout(self) -> str:
        """What a checkpoint can be read by: ZeRO's is in as many pieces as there were ranks."""
        return "whole" if self.zero is None else f"zero{self.zero.stage} over {self.ranks.world}"

    @property
    def load_on(self) -> str:
        """Where a model is loaded. ZeRO-3 splits what lies in CPU memory, so that no GPU ever holds all of it."""
        return "cpu" if self.zero is not None and self.zero.stage == 3 else self.device

    def split(self, batch_size: int, where: str) -> Split:
        return split(batch_size, self.ranks.world, self.micro_batch_size, where)


def way_of(execution: Execution, ranks: Ranks) -> Way:
    from vlsafe.model.load import pick_device

    device = pick_device(execution.device).type
    return Way(ranks, zero_of(execution.deepspeed), execution.micro_batch_size, execution.gradient_checkpointing, device)


def split(batch_size: int, processes: int, micro: int | None, where: str) -> Split:
    """Raises `ConfigError` for a batch that can't be split as asked; `where` names its setting."""
    if batch_size % processes:
        raise ConfigError(
            f"{where}={batch_size}: can't be split over {processes} processes; set num_processes to one of"
            f" {divisors(batch_size)}, or the batch size to a multiple of {processes}"
        )
    share = batch_size // processes
    taken = share if micro is None else min(micro, share)
    if share % taken:
        raise ConfigError(
            f"micro_batch_size={micro}: doesn't divide a process's share of {where}={batch_size}, which is {share} rows;"
            f" set one of {divisors(share)}"
        )
    return Split(processes, taken, share // taken)


def divisors(number: int, most: int = 8) -> str:
    """The largest of them that are asked for most: 1, 2, 4, 8."""
    found = [d for d in range(1, number + 1) if number % d == 0]
    return ", ".join(map(str, found[:most])) + (", ..." if len(found) > most else "")


def check_split(component: Any, group: str, processes: int, micro: int | None) -> None:
    """Raises `ConfigError` where a batch of the component's training can't be split."""
    for name, setting in optimizations(component, group):
        made = split(setting.batch_size, processes, micro, f"{name}.batch_size")
        if made.accumulation > 1 and getattr(component, "whole_batches", False):
            raise ConfigError(
                f"micro_batch_size={micro}: {group}={component.component_name} estimates its reference point on the whole"
                " batch, so it can't take parts of it one after the other; set micro_batch_size=null, or more processes"
            )


def optimizations(value: Any, path: str) -> Iterator[tuple[str, Optimization]]:
    """Each optimiser's run among a component's settings, with its dotted name."""
    if isinstance(value, Optimization):
        yield path, value
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from optimizations(getattr(value, f.name), f"{path}.{f.name}")
