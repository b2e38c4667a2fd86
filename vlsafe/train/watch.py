"""The trainer's callback: progress, the log of every step, checkpoints by time, and the stop signal."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlsafe.provenance import peak_memory_mb
from vlsafe.stage import StageContext
from vlsafe.train.checkpoint import seal
from vlsafe.train.checks import check_finite

FLUSH_SECONDS = 0.4  # reading losses makes a GPU wait, and nobody reads faster


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
    ) -> None:
        self.where, self.steps, self.folder, self.ctx, self.lines, self.tell = where, steps, folder, ctx, lines, tell
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
        if not last and self.ctx.should_stop():
            control.should_save = control.should_training_stop = self.interrupted = True
        elif not last and now - self.saved >= self.ctx.execution.checkpoint_seconds:
            control.should_save = True
        if last or control.should_save or now - self.flushed >= FLUSH_SECONDS:
            self.flush(now)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = self.folder / f"checkpoint-{state.global_step}"
        shutil.copyfile(self.folder / "log.jsonl", checkpoint / "log.jsonl")  # which `on_step_end` has just brought up to date
        seal(checkpoint, self.elapsed())
        self.saved = time.monotonic()

    def flush(self, now: float) -> None:
        """Raises `CheckError` when a loss or gradient norm is no number: such a step is never checkpointed."""
        import torch

        self.flushed = now
        if not self.pending:
            return
        values = torch.stack([torch.stack([loss.float(), norm.float()]) for _, loss, norm, *_ in self.pending]).tolist()
        new: list[dict[str, Any]] = []
        memory = peak_memory_mb()
        for (step, _, _, rate, tokens, more, at), (loss, norm) in zip(self.pending, values, strict=True):
            check_finite(step, loss, norm, self.where)
            seconds = self.before + at - self.started
            earlier = (new or self.lines)[-1]["seconds"] if new or self.lines else 0.0
            speed = round(tokens / max(seconds - earlier, 1e-9), 1)
            line = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm, "memory_mb": memory, **more}
            new.append({**line, "tokens_per_second": speed, "seconds": round(seconds, 4)})
        self.pending.clear()
        self.lines += new
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write("".join(json.dumps(line) + "\n" for line in new))
        self.tell(new[-1]["step"], f"{self.where}, loss {new[-1]['loss']:.3f}")
