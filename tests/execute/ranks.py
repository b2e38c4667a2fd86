"""Several ranks of a function, as the local executor starts those of a task: forks of the warm server that meet over gloo."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from vlsafe.execute.pool import Place, Pool, reserve_port
from vlsafe.ranks import join


@functools.cache
def warm_pool() -> Pool:
    pool = Pool()
    pool.warm_up()
    return pool


def run_ranks(world: int, function: Callable[..., int], *arguments: Any) -> list[int | None]:
    """The exit statuses of `function(ranks, *arguments)` on each rank; one that hangs is killed after a minute."""
    warm_pool()
    with reserve_port() as port:
        place = Place(port=port.getsockname()[1])
        context = multiprocessing.get_context("forkserver")
        processes = [
            context.Process(target=_rank, args=(place.environment(rank, world), function, arguments)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            if process.is_alive():
                process.kill()
                process.join()
    return [process.exitcode for process in processes]


def _rank(environment: dict[str, str], function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    os._exit(function(join("cpu"), *arguments))
