"""How long merging takes and how much memory, on made-up checkpoints: `python -m vlsafe.merge.bench --gigabytes 1`.

Each method merges two float32 models, over a third as base, in a process of its own with one thread. Copying the files of one
model is printed beside it: what the disk alone takes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlsafe.merge.base import MergeMethod
from vlsafe.merge.methods.dare_linear import DareLinear
from vlsafe.merge.methods.dare_ties import DareTies
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.methods.slerp import Slerp
from vlsafe.merge.methods.task_arithmetic import TaskArithmetic
from vlsafe.merge.methods.ties import Ties
from vlsafe.model.weights import SINGLE, TensorInfo, write_checkpoint
from vlsafe.stage import StageContext

METHODS = (
    Linear(),
    Slerp(),
    TaskArithmetic(),
    Ties(density=0.5),
    Ties(density=0.5, trim="model"),
    DareLinear(),
    DareLinear(rescale="l1"),
    DareTies(),
)
WIDTH, INNER, VOCABULARY = 1024, 2816, 32_000


def layout(gigabytes: float) -> list[TensorInfo]:
    """The tensors of a Llama of about that size in float32: as many layers as fit, at least one."""
    embedding = TensorInfo("model.embed_tokens.weight", "float32", (min(VOCABULARY, int(gigabytes * 10**5)), WIDTH))
    shapes = {f"self_attn.{n}_proj.weight": (WIDTH, WIDTH) for n in "qkvo"}
    shapes |= {
        "mlp.gate_proj.weight": (INNER, WIDTH),
        "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER),
    }
    size = sum(4 * a * b for a, b in shapes.values())
    layers = max(1, round((gigabytes * 10**9 - 2 * embedding.bytes) / size))
    inner = [TensorInfo(f"model.layers.{i}.{n}", "float32", s) for i in range(layers) for n, s in shapes.items()]
    return [embedding, *inner, TensorInfo("lm_head.weight", "float32", embedding.shape)]


def make_models(folder: Path, infos: Sequence[TensorInfo]) -> dict[str, Path]:
    """A base and two models that differ from it a little everywhere."""
    import torch

    for place, name in enumerate(("base", "one", "two")):
        first, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(place)

        def tensor(info: TensorInfo, first: Any = first, own: Any = own, place: int = place) -> Any:
            start = torch.randn(info.shape, generator=first)
            return start.add_(torch.randn(info.shape, generator=own), alpha=0.02) if place else start

        write_checkpoint(folder / name, infos, tensor, 10**12)
    return {"carrier": folder / "one", "model_0": folder / "one", "model_1": folder / "two", "base": folder / "base"}


def measure(method: MergeMethod, parents: dict[str, Path], out: Path) -> tuple[float, float, float]:
    """(seconds, seconds of processor time, peak resident memory of the process in GB), without imports."""
    import torch

    from vlsafe.merge import report  # noqa: F401 (what a warm process has loaded)
    from vlsafe.merge.stage import run

    torch.set_num_threads(1)
    start, busy = time.perf_counter(), time.process_time()
    run(method, StageContext(out, out, parents))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return time.perf_counter() - start, time.process_time() - busy, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.1, help="size of each model")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the models go for the time being (default: the temporary folder)"
    )
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        folder = Path(scratch)
        infos = layout(arguments.gigabytes)
        with spawn.Pool(1) as pool:
            parents = pool.apply(make_models, (folder, infos))
        print(f"two models of {sum(i.bytes for i in infos) / 1e9:.2f} GB, {len(infos)} tensors, one thread")
        start = time.perf_counter()
        shutil.copyfile(folder / "one" / SINGLE, folder / "copy")
        print(f"{'copying one model':<40} {time.perf_counter() - start:6.2f} s")
        (folder / "copy").unlink()
        for method in METHODS:
            out = folder / "out"
            out.mkdir()
            with spawn.Pool(1) as pool:
                seconds, busy, memory = pool.apply(measure, (method, parents, out))
            shutil.rmtree(out)
            told = " ".join([method.component_name, *(f"{k}={v}" for k, v in vars(method).items() if k in ("trim", "rescale"))])
            print(f"{told:<40} {seconds:6.2f} s  {busy:6.2f} s busy  {memory:5.2f} GB peak")


if __name__ == "__main__":
    main()
