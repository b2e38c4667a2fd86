"""The trainer's callback: progress, the log of every step, checkpoints by time, and the stop signal."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlsafe.provenance import peak_memory_mb
from vlsafe.ranks import Ranks
from vlsafe.stage import StageContext
from vlsafe.train.checkpoint import seal
from vlsafe.train.checks import check_finite

FLUSH_SECONDS = 0.4  # reading losses makes a GPU wait, and nobody reads faster
MAY_BE_UNDEFINED = ("reward_margin",)  # for a rank: KTO's, where there is no desirable answer or no undesirable one


class Watch(TrainerCallback):  # type: ignore[misc]
    """One phase's. `lines` has one entry a step: step, loss, grad_norm, lr, tokens_per_second, memory_mb (the peak so far),
    seconds (since the phase's first start)."""

    def __init__(
        self,
        where: str,
        steps: int,
        folder: Path,
        ctx: StageContext,
        lines: list[dict[str, Any]],
        tell: Callable[[int, str], None],
        elapsed: Callable[[], float],
        after: Callable[[int], bool] = lambda step: False,
        layout: str = "whole",
    ) -> None:
        self.where, self.steps, self.folder, self.ctx, self.lines, self.tell = where, steps, folder, ctx, lines, tell
        self.layout = layout
        self.elapsed, self.after = elapsed, after  # `after` a step: whether the phase ends there
        self.before = lines[-1]["seconds"] if lines else 0.0
        self.pending: list[tuple[int, Any, Any, float, int, dict[str, float], float]] = []
        self.interrupted = False
        self.started = self.flushed = self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.flushed = self.saved = time.monotonic()

    def report(self, step: int, loss: Any, grad_norm: Any, learning_rate: float, tokens: int, more: dict[str, float]) -> None:
        self.pending.append((step, loss, grad_norm, learning_rate, tokens, more, time.monotonic()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        last = state.global_step >= self.steps
        if self.after(state.global_step):
            control.should_training_stop = last = True
        # Clocks of ranks differ: the main one says what it is time for.
        save, flush = self.ctx.ranks.broadcast(
            (now - self.saved >= self.ctx.execution.checkpoint_seconds, now - self.flushed >= FLUSH_SECONDS)
        )
        if not last and self.ctx.should_stop():
            control.should_save = control.should_training_stop = self.interrupted = True
        elif not last and save:
            control.should_save = True
        if last or control.should_save or flush:
            self.flush(now)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ranks = self.ctx.ranks
        ranks.barrier()  # every rank has written what is its own
        if ranks.main:
            checkpoint = self.folder / f"checkpoint-{state.global_step}"
            shutil.copyfile(
                self.folder / "log.jsonl", checkpoint / "log.jsonl"
            )  # which `on_step_end` has just brought up to date
            seal(checkpoint, self.elapsed(), self.layout)
        ranks.barrier()
        self.saved = time.monotonic()

    def flush(self, now: float) -> None:
        """Raises `CheckError` when a loss or gradient norm is no number: such a step is never checkpointed."""
        import torch

        self.flushed = now
        if not self.pending:
            return
        device = self.pending[0][1].device
        mine = [torch.stack([loss.float(), norm.float().to(device)]) for _, loss, norm, *_ in self.pending]
        values = torch.stack(mine).tolist()
        ranks = self.ctx.ranks
        losses = mean_over(ranks, [{"loss": loss} for loss, _ in values])
        norms = worst_over(ranks, [norm for _, norm in values])
        metrics = mean_over(ranks, [more for *_, more, _ in self.pending], MAY_BE_UNDEFINED)
        counts = [sum(counts) for counts in zip(*ranks.gather([p[4] for p in self.pending]), strict=True)]
        new: list[dict[str, Any]] = []
        memory = peak_memory_mb()
        for i, (step, _, _, rate, _, _, at) in enumerate(self.pending):
            loss, norm, more, tokens = losses[i]["loss"], norms[i], metrics[i], counts[i]
            check_finite(step, loss, norm, self.where)
            seconds = self.before + at - self.started
            earlier = (new or self.lines)[-1]["seconds"] if new or self.lines else 0.0
            speed = round(tokens / max(seconds - earlier, 1e-9), 1)
            line = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm, "memory_mb": memory, **more}
            new.append({**line, "tokens_per_second": speed, "seconds": round(seconds, 4)})
        self.pending.clear()
        self.lines += new
        if self.ctx.ranks.main:
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write("".join(json.dumps(line) + "\n" for line in new))
        self.tell(new[-1]["step"], f"{self.where}, loss {new[-1]['loss']:.3f}")


def mean_over(ranks: Ranks, mine: list[dict[str, float]], may_be_undefined: Collection[str] = ()) -> list[dict[str, float]]:
    """Each entry's mean over the ranks; of those that may be undefined, over the ranks that have a number."""
    if ranks.world == 1:
        return mine
    means = []
    for entries in zip(*ranks.gather(mine), strict=True):
        found = {name: [e[name] for e in entries if name not in may_be_undefined or e[name] == e[name]] for name in entries[0]}
        means.append({name: sum(values) / len(values) if values else float("nan") for name, values in found.items()})
    return means


def worst_over(ranks: Ranks, mine: list[float]) -> list[float]:
    """Each gradient norm, which is that of all ranks; where a rank has none that is a number, that one."""
    return [next((n for n in norms if not 0 <= n < float("inf")), norms[0]) for norms in zip(*ranks.gather(mine), strict=True)]
