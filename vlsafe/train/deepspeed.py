"""DeepSpeed's ZeRO (Rajbhandari et al., arXiv 1910.02054): group `deepspeed`. It says how training is spread over processes and
memory, never what is computed: no option changes a key.

Everything that DeepSpeed reads is made here from our own settings. Batch sizes are not its business: they are global, and how
they are split follows from the number of processes (`vlsafe.train.split`).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlsafe.errors import ConfigError
from vlsafe.registry import Component, register
from vlsafe.settings import PositiveInt

OURS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "bf16",
        "fp16", "optimizer", "scheduler", "zero_optimization")  # fmt: skip


@register("deepspeed", "none")
@dataclass(frozen=True)
class NoDeepSpeed(Component):
    """Training runs in one process, or with `num_processes` above 1 by PyTorch's DistributedDataParallel (every process holds
    everything)."""


@register("deepspeed", "zero")
@dataclass(frozen=True)
class Zero(Component):
    """Optimiser state split over the processes (stage 1), gradients too (2), weights too (3)."""

    stage: Literal[1, 2, 3]
    offload: bool = False  # optimiser state, and at stage 3 the weights, lie in CPU memory
    bucket_size: PositiveInt | None = None  # numbers that are exchanged at a time; null: DeepSpeed's default
    overrides: dict[str, Any] = field(default_factory=dict)  # further entries of DeepSpeed's JSON, as they are

    def check(self) -> None:
        for name in self.overrides:
            if name in OURS:
                raise ConfigError(
                    f"deepspeed.overrides.{name}: follows from other settings (batch_size, micro_batch_size, precision,"
                    " deepspeed.stage); set those"
                )

    def config(self, precision: str, micro: int, accumulation: int, max_grad_norm: float) -> dict[str, Any]:
        """DeepSpeed's JSON. `train_batch_size` is left out: with CPU ranks DeepSpeed asserts on it before it knows them."""
        place = {"device": "cpu", "pin_memory": False}
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            **({"offload_optimizer": place} if self.offload else {}),
            **({"offload_param": place} if self.offload and self.stage == 3 else {}),
        }
        if self.bucket_size is not None:
            zero |= {"reduce_bucket_size": self.bucket_size}
            zero |= (
                {"stage3_prefetch_bucket_size": self.bucket_size}
                if self.stage == 3
                else {"allgather_bucket_size": self.bucket_size}
            )
        return {
            **self.overrides,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": max_grad_norm,
            "bf16": {"enabled": precision == "bf16"},
            "fp16": {"enabled": False},
            "zero_optimization": zero,
            # Our optimiser is PyTorch's AdamW in one process and in many, offloaded or not: it needs no compiler.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }


def zero_of(settings: Mapping[str, Any] | None) -> Zero | None:
    """From what a task's JSON holds; None without DeepSpeed."""
    if settings is None:
        return None
    from vlsafe.registry import make

    made = make("deepspeed", settings)
    return made if isinstance(made, Zero) else None


def check_compiler(environment: Mapping[str, str] = os.environ) -> None:
    """Raises `ConfigError` where the one operation that DeepSpeed compiles for ranks on the CPU could not be compiled."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    if shutil.which(environment.get("CXX", "g++"), path=path) is None:
        raise ConfigError(
            "deepspeed: ranks on the CPU need a C++ compiler, which DeepSpeed compiles an operation with once, and there is no"
            f" {environment.get('CXX', 'g++')}: apt-get install g++, or set deepspeed=none"
        )
    if shutil.which("ninja", path=path) is None:
        raise ConfigError(
            "deepspeed: ranks on the CPU need ninja, which DeepSpeed compiles an operation with once: pip install ninja, or set"
            " deepspeed=none"
        )
