"""What a stage's code is given: read-only parents, a scratch folder, and ways to report. Stages know nothing else.

A stage is pure: its result depends on its spec and its parents alone, never on the Hydra config or the sweep that asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlsafe.ranks import ALONE, Ranks

STAGE_KINDS = ("model", "adaptation", "safety_tune", "merge", "generate", "judge")
TRAINING_KINDS = ("model", "adaptation", "safety_tune")


@dataclass(frozen=True)
class Execution:
    """How a stage runs; never part of its key, always part of its manifest."""

    threads: int = 1  # CPU threads of each process
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_seconds: float = 20.0  # least time between two training checkpoints
    num_processes: int = 1  # ranks, over all nodes
    num_nodes: int = 1
    micro_batch_size: int | None = None  # rows that a rank takes at once; None: its whole share of the global batch
    gradient_checkpointing: bool = False  # of training: activations are computed again instead of kept
    deepspeed: dict[str, Any] | None = None  # the settings of the group `deepspeed`; None: without it


# Publishes an intermediate model under a key of its own: (what writes it to a folder, its facts).
PublishSnapshot = Callable[[Callable[[Path], object], dict[str, Any]], None]


def no_progress(done: int, total: int, note: str = "") -> None:
    return None


def never() -> bool:
    return False


@dataclass
class StageContext:
    """One run of one stage.

    `out` is scratch on the store's file system: what is left there when the stage returns is published, except `work`.
    `work` survives a kill and is handed to the next try, so checkpoints go there; it is deleted at publication.
    """

    out: Path
    work: Path
    parents: Mapping[str, Path] = field(default_factory=dict)  # verified artifact folders, by the name the spec uses
    execution: Execution = Execution()
    progress: Callable[[int, int, str], None] = no_progress  # (done, total, note), as often as you like
    should_stop: Callable[[], bool] = never  # true after a stop signal: checkpoint, then raise StageInterrupted
    ranks: Ranks = ALONE  # with several, a training's `should_stop` is agreed among them: all call it in the same places
    earlier: tuple[Path, ...] = ()  # artifacts that differ in `limit` only, whose rows may be reused
    verdicts: Path | None = None  # of a filtered training: a file of its own, beside those of trainings with the same filter
    step: int | None = None  # of an adaptation: the model after this step of its last phase is wanted, not the final one
    snapshots: Mapping[int, PublishSnapshot] = field(default_factory=dict)  # of an adaptation: earlier steps wanted on the way
    facts: dict[str, Any] = field(default_factory=dict)  # goes into the manifest: counts, losses, what the checks saw
