"""Ranks: the processes that one stage runs in, as the stage's code sees them. With one process all of it is trivial.

What ranks tell each other (a stop request, who failed, where to write) goes over a gloo group of its own on the CPU, so that a
GPU never waits for it and a rank may wait for another for as long as that one has a lease to wait for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from vlsafe.errors import CheckError, VlsafeError

T = TypeVar("T")
OTHER_PORT = (
    "hydra/launcher=local takes another when the same command is given again; hydra/launcher=slurm has hydra.launcher.port, "
    "torchrun --master-port, deepspeed --master_port"
)
LOST = re.compile(
    r"(gloo|nccl)\b.*?(connection (?:closed|reset|refused)|read error|broken pipe|remote process exited|timed? ?out)", re.I
)
PATIENCE = timedelta(days=30)  # a rank that died is noticed by its closed connection, not by time


class AgreedError(VlsafeError):
    """What failed on a rank, raised by all of them in the same place: they can go on with another stage together."""


@dataclass(frozen=True)
class Ranks:
    """`rank` of `world` processes, the `local_rank`th on this machine. Every method is a collective: all ranks call it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    group: Any = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """True of the one rank that writes files, events and leases."""
        return self.rank == 0

    def barrier(self) -> None:
        self.gather(None)

    def broadcast(self, value: T) -> T:
        """What the main rank gave."""
        return self.gather(value if self.main else None)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank. Values are small: they are pickled."""
        if self.world == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work`, which is no collective, returns here. Where it fails on any rank, all raise `AgreedError`."""
        if self.world == 1:
            return work()
        made: list[T] = []
        failed: Exception | None = None
        try:
            made.append(work())
        except Exception as error:
            failed = error
        said = (
            "" if failed is None else str(failed) if isinstance(failed, VlsafeError) else f"{type(failed).__name__}: {failed}"
        )
        told = [f"rank {rank}: {said}" if rank else said for rank, said in enumerate(self.gather(said)) if said]
        if told:
            raise AgreedError(told[0]) from failed
        return made[0]

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        if self.world == 1:
            return flag
        import torch

        tensor = torch.tensor(int(flag))
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(tensor)


def in_words(said: str) -> str:
    """An error's line, in words where it only tells that another rank is gone, which is nobody's first cause."""
    lost = LOST.search(said)
    return (
        f"another process of this stage is gone ({lost[1].lower()}: {lost[2].lower()}); its log says what ended it"
        if lost
        else said
    )


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes `torchrun`, `deepspeed` or the local pool started for this stage."""
    return int(environment.get("WORLD_SIZE", "1"))


def join(device: str, environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process as a rank, once all others are there. Raises `CheckError` where the ranks can't meet.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as `torchrun` sets them.
    """
    world = world_size(environment)
    if world == 1:
        return Ranks()
    import torch
    import torch.distributed as dist

    rank, local_rank = int(environment["RANK"]), int(environment.get("LOCAL_RANK", "0"))
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise CheckError(
                f"rank {rank} has no GPU of its own: {torch.cuda.device_count()} are visible; lower num_processes to that"
            )
        torch.cuda.set_device(local_rank)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        meeting = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        busy = "address already in use" in str(error).lower() or "EADDRINUSE" in str(error)
        hint = f"the port is in use: {OTHER_PORT}" if busy else "is it reachable?"
        raise CheckError(f"rank {rank} of {world} can't meet the others at {meeting} ({hint}): {why}") from error
    return Ranks(rank, world, local_rank, group)


def join_nobody(device: str) -> None:
    """A process group of this process alone, without a port: DeepSpeed asks for one with one process too, else for MPI."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # looked for, and never used
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)


ALONE = Ranks()
