"""Trainings of a few steps, to run alone or as a rank: python dist_cases.py FOLDER CASE...   (or under torchrun).

A case is `METHOD[-qwen][-lora][-rates][-accumulate][-bf16][-half][-save32][-text]@WAY`, WAY one of none, zero1, zero2, zero3,
zero3_offload; `half` begins from a parent stored in bf16. It leaves FOLDER/CASE/ with the model and `facts.json`. `-bare` takes
away what stands in for an absent picture, `-wrong` has a row that can't be learned from, `-noted` tells who encoded which rows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
import train_qwen
import train_tiny as tiny

from vlsafe.data.encode import Encoder
from vlsafe.data.mix import Unpaired
from vlsafe.errors import StageInterrupted
from vlsafe.ranks import Ranks, join
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import run_phases
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization
from vlsafe.train.phase import Phase

BOTH: tuple[Any, ...] = ("language_model", "projector")
WAYS: dict[str, Any] = {
    "none": None,
    "zero1": {"name": "zero", "stage": 1},
    "zero2": {"name": "zero", "stage": 2},
    "zero3": {"name": "zero", "stage": 3},
    "zero3_offload": {"name": "zero", "stage": 3, "offload": True},
}


def phases(what: set[str], steps: int = 9) -> list[Phase]:
    setting = Optimization(
        steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=2, schedule="cosine", weight_decay=0.1,
        precision="bf16" if "bf16" in what else "fp32", projector_learning_rate=5e-4 if "rates" in what else None,
        max_length=34 if "short" in what else None,
    )  # fmt: skip
    lora = Lora(rank=4, alpha=8, projector_learning_rate=1e-3) if "lora" in what else None
    # 27 pictures of 56 rows: a pass has batches of pictures, batches of text, and one of 3 pictures and 5 texts, so that the
    # second of two ranks has no picture where the first has some.
    mixed = tiny.supervised(27, 1, pictures=1.0) + tiny.supervised(29, 2, pictures=0.0)
    pairs = tiny.preferences(27, 1, pictures=1.0) + tiny.preferences(29, 2, pictures=0.0)
    if "qwen" in what:
        mixed, pairs = train_qwen.resized(mixed), train_qwen.resized(pairs)
    if "wrong" in what:  # in what the second of two ranks encodes
        mixed[41] = {**mixed[41], "completion": []}
    if "dpo" in what:
        return [Phase("pairs", "dpo", lambda: pairs, setting, BOTH, 7, {"beta": 0.1}, lora)]
    if "kto" in what:
        return [Phase("answers", "kto", lambda: Unpaired(pairs), setting, BOTH, 7, {"beta": 0.1}, lora)]
    second = Phase("instruct", "sft", lambda: mixed, setting, BOTH, 6, lora=lora)
    if "two" in what:
        first = Optimization(steps=4, batch_size=8, learning_rate=3e-3)
        return [Phase("projector", "sft", lambda: tiny.supervised(40, 3, pictures=1.0), first, ("projector",), 5), second]
    return [second]


class Stopper:
    """Stops, or kills its own process, once so many steps were reported."""

    def __init__(self, ranks: Ranks, stop: int | None, kill: tuple[int, int] | None, file: Path) -> None:
        self.ranks, self.stop, self.kill, self.file, self.stopped = ranks, stop, kill, file, False

    def asked(self) -> bool:
        """Called at every step's end, and it is a collective: all ranks call it in the same places."""
        log = next(iter(sorted(self.file.glob("*/log.jsonl"), reverse=True)), None)
        steps = len(log.read_text().splitlines()) if log else 0
        if self.kill is not None and self.ranks.rank == self.kill[0] and steps >= self.kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        self.stopped |= self.stop is not None and steps >= self.stop and self.ranks.main
        return self.ranks.any(self.stopped)


class Nothing:
    """In the absent picture's place."""

    picture: Any = None

    def __init__(self, model: Any) -> None:
        pass

    def remove(self) -> None:
        pass


def die_in_a_checkpoint(step: int) -> None:
    """Half of the first file that this rank writes of that checkpoint reaches the disk, and then the rank is killed."""
    import io

    import torch

    whole = torch.save

    def save(value: Any, file: Any, *more: Any, **others: Any) -> None:
        if f"checkpoint-{step}/" not in str(file):
            whole(value, file, *more, **others)
            return
        buffer = io.BytesIO()
        whole(value, buffer, *more, **others)
        Path(file).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save


def note_encoded(file: Path) -> None:
    """Has this rank write down which rows it encodes."""
    whole = Encoder._encode_chunk

    def encode(self: Any, rows: Any, start: int, *more: Any) -> None:
        with file.open("a") as noted:
            noted.writelines(f"{start + i}\n" for i in range(len(rows)))
        whole(self, rows, start, *more)

    Encoder._encode_chunk = encode  # type: ignore[method-assign]


def run(
    case: str, parent: Path, folder: Path, ranks: Ranks, stop: int | None = None, kill: Any = None, half: int | None = None
) -> None:
    import torch

    from vlsafe.model.load import load_model, load_processor, save_model
    from vlsafe.train import exact, watch

    watch.FLUSH_SECONDS = 0.0  # so that a stopper sees every step
    what, _, way = case.partition("@")
    kinds = set(what.split("-"))
    torch.set_num_threads(1)
    execution = Execution(
        device="cpu", num_processes=ranks.world, deepspeed=WAYS[way], micro_batch_size=2 if "accumulate" in kinds else None,
        checkpoint_seconds=0.0 if "checkpoints" in kinds else 1e9, gradient_checkpointing="recompute" in kinds,
    )  # fmt: skip
    stopper = Stopper(ranks, stop, kill, folder / "work")
    taken: dict[int, Any] = {}

    def publish(step: int) -> Any:
        def take(write: Any, facts: Any) -> None:
            (folder / f"step-{step}").mkdir(parents=True)
            write(folder / f"step-{step}")

        return take

    if "snapshots" in kinds:
        taken = {step: publish(step) for step in (0, 3, 5)}
    ctx = StageContext(
        folder / "out", folder / "work", execution=execution, ranks=ranks, should_stop=stopper.asked, snapshots=taken
    )
    (folder / "out").mkdir(parents=True, exist_ok=True)
    if "bare" in kinds:
        exact.AbsentPicture = Nothing
    if "noted" in kinds:
        note_encoded(folder / f"encoded-by-{ranks.rank}.txt")
    if half == ranks.rank:
        die_in_a_checkpoint(5)
    where = parent.with_name("half") if "half" in kinds else parent

    def load() -> tuple[Any, Any]:
        return load_model(where, "cpu", train=True), load_processor(where)

    model, processor = run_phases(load, phases(kinds), ctx, "fp32" if "save32" in kinds else "parent")
    if ranks.main:
        save_model(model, processor, folder / "out")
        (folder / "facts.json").write_text(json.dumps(ctx.facts))
    ranks.barrier()


def main(folder: Path, cases: list[str]) -> None:
    ranks = join("cpu")
    for given in cases:
        case, _, order = given.partition(":")  # CASE:stop=3, CASE:kill=RANK,STEPS or CASE:half=RANK
        how, _, value = order.partition("=")
        began = time.monotonic()
        try:
            parent = folder / ("qwen" if "-qwen" in case else "parent")
            run(
                case, parent, folder / ("many" if ranks.world > 1 else "one") / case, ranks,
                stop=int(value) if how == "stop" else None,
                kill=tuple(map(int, value.split(","))) if how == "kill" else None,
                half=int(value) if how == "half" else None,
            )  # fmt: skip
        except StageInterrupted:
            assert how == "stop", given
        if ranks.main:
            print(f"{given}: {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    os._exit(0)
