"""A training stage to run in a child process of its own, which tests kill."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import train_tiny as tiny

from vlsafe.data.mix import Unpaired
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import run_phases
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization
from vlsafe.train.phase import Phase


def phases(method: str) -> list[Phase]:
    first = Optimization(steps=6, batch_size=8, learning_rate=3e-3, warmup_steps=2)
    second = Optimization(steps=12, batch_size=8, learning_rate=2e-3, schedule="cosine", final_fraction=0.1)
    both: tuple[Any, ...] = ("language_model", "projector")
    if method == "dpo":
        return [Phase("pairs", "dpo", lambda: tiny.preferences(70, 3), second, both, 7, {"beta": 0.1})]
    if method == "kto":
        return [Phase("answers", "kto", lambda: Unpaired(tiny.preferences(40, 3)), second, both, 7, {"beta": 0.1})]
    projector = Phase("projector", "sft", lambda: tiny.supervised(48, 1, pictures=1.0), first, ("projector",), 5)
    if method == "lora":
        dropped = Lora(rank=4, alpha=8, dropout=0.1, projector_learning_rate=1e-3)
        return [
            projector,
            Phase("instruct", "sft", lambda: tiny.supervised(70, 2), second, both, 6, lora=dropped),
            Phase("pairs", "dpo", lambda: tiny.preferences(70, 3), first, both, 7, {"beta": 0.1}, Lora(rank=2, alpha=4)),
        ]
    return [projector, Phase("instruct", "sft", lambda: tiny.supervised(70, 2), second, both, 6)]


def weights(model: Any) -> str:
    """A hash of every name and bit of the state dict."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(
    method: str,
    parent: Path,
    folder: Path,
    checkpoint_seconds: float = 0.0,
    stop_after: int | None = None,
    facts: dict[str, Any] | None = None,
) -> str:
    """Run or go on with the stage in `folder`; with `stop_after`, ask it to stop when that many steps are reported. `facts` is
    filled with the stage's."""
    import torch

    from vlsafe.model.load import load_model, load_processor

    torch.set_num_threads(1)
    seen = [0]

    def progress(done: int, total: int, note: str = "") -> None:
        seen[0] = done

    ctx = StageContext(
        out=folder / "out",
        work=folder / "work",
        execution=Execution(device="cpu", checkpoint_seconds=checkpoint_seconds),
        progress=progress,
        should_stop=lambda: stop_after is not None and seen[0] >= stop_after,
        facts={} if facts is None else facts,
    )
    model, _ = run_phases(lambda: (load_model(parent, "cpu"), load_processor(parent)), phases(method), ctx)
    return weights(model)


def child(method: str, parent: Path, folder: Path, torn_at: int | None = None) -> None:
    """For a process that may be killed: the hash is written when training is through. With `torn_at` it kills itself when
    that checkpoint's files are written and its marker is not."""
    if torn_at is not None:
        from vlsafe.train import watch

        seal = watch.seal

        def dying(checkpoint: Path, seconds: float, layout: str) -> None:
            if checkpoint.name == f"checkpoint-{torn_at}":
                os.kill(os.getpid(), signal.SIGKILL)
            seal(checkpoint, seconds, layout)

        watch.seal = dying
    found = train(method, parent, folder)
    (folder / "hash").write_text(found)
