"""TRL's trainers, changed only where speed and exactness need it. Imports torch and trl: import this inside functions.

What differs from TRL: rows are encoded beforehand (the collator only pads), the head runs on supervised positions only and
computes no metrics beside the loss, the learning rate follows `Optimization.factor`, checkpoints hold the trained weights under
the model's own names, and the loss and gradient norm of each step stay on the device until they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from vlsafe.model.families import TOKEN_TYPES
from vlsafe.ranks import join_nobody
from vlsafe.train.checkpoint import mark, verified
from vlsafe.train.dtypes import computing
from vlsafe.train.exact import Exact, use_light_head
from vlsafe.train.optimization import Optimization
from vlsafe.train.split import Split, Way


class Supervised(Exact, SFTTrainer):  # type: ignore[misc]
    """Mean negative log-likelihood of the supervised tokens of the (global) batch."""

    def __init__(self, model: Any, **kwargs: Any) -> None:
        super().__init__(model=model, **kwargs)
        self.model_accepts_loss_kwargs = True  # `compute_loss` counts tokens over micro-batches, whatever the model would do
        use_light_head(model)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        count = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = -outputs.log_probs.sum() / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients, `count` is that of all processes
        return loss


class Compared(Exact):
    """What DPO and KTO share: the reference is the model before its first step; its log-probabilities are computed once, in
    the batches they are used in, and kept in `reference_file`, so no second model is held."""

    reference_columns: ClassVar[tuple[str, str]]
    metric_names: ClassVar[tuple[tuple[str, str], ...]]  # ours and TRL's

    def __init__(
        self, model: Any, reference_file: Path, tick: Callable[[str], None], way: Way, optimization: Optimization, **kwargs: Any
    ) -> None:
        self._reference_file, self._tick, self.way, self.optimization = reference_file, tick, way, optimization
        super().__init__(model=model, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset

    def step_metrics(self) -> dict[str, float]:
        seen = self._metrics["train"]  # TRL's, one entry a micro-batch, which it averages only where it logs
        parts = self.args.gradient_accumulation_steps
        return {ours: sum(seen[theirs][-parts:]) / parts for ours, theirs in self.metric_names}

    def reference(self, inputs: Any) -> tuple[Any, Any]:
        """The log-probabilities of a batch for each of `reference_columns`."""
        raise TypeError(f"{type(self).__name__} is abstract")

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        use_light_head(self.model)
        marker = self._reference_file.with_suffix(".json")
        ranks = self.way.ranks
        if not ranks.broadcast(ranks.main and verified(marker) is not None):
            rows = self._reference_rows(dataset, batch_size)
            if ranks.main:
                save_file({"log_probs": rows}, self._reference_file)
                mark(marker, [self._reference_file.name])
            ranks.barrier()
        values = load_file(self._reference_file)["log_probs"]
        for i, column in enumerate(self.reference_columns):
            dataset = dataset.add_column(column, values[:, i].tolist())
        return dataset

    def _reference_rows(self, dataset: Any, batch_size: int) -> Any:
        """(rows, columns); ranks take turns at the batches. ZeRO has not got hold of the model yet: each has all of it."""
        ranks, place = self.way.ranks, self.model.device
        self.model.to(self.args.device).eval()
        precision = self.optimization.precision  # of the steps too, so that the first one's margins are zero
        starts = list(range(0, len(dataset), batch_size))
        mine: dict[int, Any] = {}
        for turn in range(0, len(starts), ranks.world):
            self._tick(f"asking the reference, {starts[turn]} of {len(dataset)}")
            if turn + ranks.rank < len(starts):
                start = starts[turn + ranks.rank]
                features = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
                inputs = self._prepare_inputs(self.data_collator(features))
                with computing(self.model, precision):
                    mine[start] = torch.stack(self.reference(inputs), dim=1).float().cpu()
        self.model.to(place)
        found = {start: rows for part in ranks.gather(mine) for start, rows in part.items()}
        return torch.cat([found[start] for start in starts])


class Preference(Compared, DPOTrainer):  # type: ignore[misc]
    """DPO (Rafailov et al. 2023, eq. 7), TRL's loss."""

    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")
    metric_names = (("reward_margin", "rewards/margins"), ("reward_accuracy", "rewards/accuracies"))

    def reference(self, inputs: Any) -> tuple[Any, Any]:
        return tuple(self.compute_ref_log_probs(self.model, inputs))


class Unpaired(Compared, KTOTrainer):  # type: ignore[misc]
    """KTO (Ethayarajh et al. 2024, eq. 7), TRL's loss. Its reference point, an estimate of the divergence from the reference
    model, is taken on each prompt of the batch with the answer of the row before it, also TRL's."""

    reference_columns = ("ref_logps", "ref_KL_logps")
    metric_names = (("reward_margin", "rewards/margins"), ("kl", "kl"))

    def reference(self, inputs: Any) -> tuple[Any, Any]:
        # Not `compute_ref_log_probs`: it leaves the pictures out.
        own = ("input_ids", "attention_mask", "completion_mask", TOKEN_TYPES)
        matched = {f"KL_{k}": inputs[k] for k in own if k in inputs}
        with torch.no_grad():
            return self._compute_kl_logps(self.model, {**inputs, **matched}), self._compute_kl_logps(self.model, inputs)


def make_trainer(
    method: str,
    model: Any,
    processor: Any,
    batches: list[list[int]],
    collator: Any,
    optimization: Optimization,
    seed: int,
    folder: Path,
    options: Mapping[str, Any],
    callback: Any,
    tick: Callable[[str], None],
    way: Way,
    parts: Split,
    pictured: Sequence[bool],
    projector_learning_rate: float | None = None,
) -> Any:
    """The trainer of one phase: it reads example numbers in the order of `batches` and never shuffles.

    The order is global: with several processes (or gradient accumulation) the same batch is only split differently.
    `pictured[i]` says whether example i has a picture.
    """
    if way.zero is not None:
        if way.ranks.world == 1:
            join_nobody(way.device)
        AcceleratorState._reset_state()  # it would keep the configuration of the phase before
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": optimization.steps,
        "per_device_train_batch_size": parts.micro,
        "gradient_accumulation_steps": parts.accumulation,
        "learning_rate": optimization.learning_rate,
        "weight_decay": optimization.weight_decay,
        "max_grad_norm": optimization.max_grad_norm,
        "optim": "adamw_torch_fused",
        "seed": seed,
        "data_seed": seed,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",  # the callback asks for checkpoints
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "gradient_checkpointing": way.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if way.gradient_checkpointing else None,
        "dataloader_pin_memory": False,
        "max_length": None,
        "use_cpu": way.device == "cpu",
        "bf16": optimization.precision == "bf16",
    }
    if way.zero is not None:
        config = way.zero.config(optimization.precision, parts.micro, parts.accumulation, optimization.max_grad_norm)
        shared["deepspeed"] = config
    elif way.ranks.world > 1:
        shared["ddp_find_unused_parameters"] = True  # a step without pictures
    order = {"example": [i for batch in batches for i in batch]}
    if method == "kto":  # said here, so that a batch that is split over processes keeps its mismatched answers
        order["mismatched"] = [i for batch in batches for i in batch[-1:] + batch[:-1]]
    if way.ranks.world > 1 or way.zero is not None:
        order["pictured"] = [any(pictured[i] for i in batch) for batch in batches for _ in batch]
    inputs = {
        "model": model,
        "train_dataset": Dataset.from_dict(order),
        "data_collator": collator,
        "processing_class": processor,
        "callbacks": [callback],
    }
    if method == "sft":
        trainer = Supervised(args=SFTConfig(**shared, dataset_kwargs={"skip_prepare_dataset": True}), **inputs)
    else:
        kind, settings = (Preference, DPOConfig) if method == "dpo" else (Unpaired, KTOConfig)
        trainer = kind(
            args=settings(**shared, **options, precompute_ref_log_probs=True),
            reference_file=folder / "reference.safetensors",
            tick=tick,
            way=way,
            optimization=optimization,
            **inputs,
        )
    trainer.optimization, trainer.way = optimization, way
    # ZeRO-3 keeps the gradient of a part that a step doesn't use from an earlier one, and counts it in the norm: it gets zeros.
    collator.blank_always = any(pictured) and way.zero is not None and way.zero.stage == 3
    trainer.may_lack_pictures = any(pictured) and (way.ranks.world > 1 or collator.blank_always)
    trainer.projector_learning_rate = projector_learning_rate
    trainer.remove_callback(PrinterCallback)
    return trainer
