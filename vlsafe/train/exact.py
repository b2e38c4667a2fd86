"""What all of our trainers have in common, over transformers' own: the head, the optimiser, the schedule, checkpoints, reports.

Imports torch and trl: import this inside functions.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.trainer.utils import FusedCausalLMOutput

from vlsafe.train.idle import SEEING, AbsentPicture, SparingAdamW, groups_by_part
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import part_of
from vlsafe.train.split import Way
from vlsafe.train.weights import load_weights, save_weights, trained_state

WEIGHTS = "model.safetensors"
# Text settings that change the logits after the head: such models keep TRL's own head.
_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def use_light_head(model: Any) -> None:
    """Replace TRL's fused head on the CPU, where it projects every position and computes entropy and accuracy, by one that
    projects the supervised positions only. Same output type, same log-probabilities; the metrics are zero."""
    text = model.config.get_text_config()
    if model.device.type != "cpu" or any(getattr(text, name, None) is not None for name in _SCALED_LOGITS):
        return
    original = type(model).forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original(self, *args, labels=labels, **kwargs)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        logits = self.get_output_embeddings()(hidden[mask]).float()
        found = -torch.nn.functional.cross_entropy(logits, labels[:, 1:][mask], reduction="none")
        log_probs = found.new_zeros(mask.shape).masked_scatter(mask, found)
        zero = torch.zeros_like(log_probs)
        return FusedCausalLMOutput(log_probs=log_probs, entropy=zero, mean_logits=zero, is_top1=zero.bool(), label_mask=mask)

    model.forward = types.MethodType(forward, model)


class Exact(Trainer):  # type: ignore[misc]
    """What all trainers share. `report(step, loss, grad_norm, learning_rate, tokens, more)` is called after every step with
    tensors that are still on the device; `before_first_step(trainer)` once, when the optimiser exists."""

    optimization: Optimization
    optimizer: Any
    way: Way
    projector_learning_rate: float | None = None  # None: that of everything else
    lr_scheduler: Any
    report: Callable[[int, Any, Any, float, int, dict[str, float]], None]
    before_first_step: Callable[[Any], None]
    _sparing: SparingAdamW | None = None
    may_lack_pictures: bool = False  # a rank's share of a step, where others' have some
    absent: AbsentPicture | None = None

    def _send_telemetry(self) -> None:
        return None

    def create_optimizer(self, model: Any = None) -> Any:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.way.zero is not None:
            optimizer = self.optimizer = self._sparing = SparingAdamW(groups_by_part(optimizer.param_groups, self.model))
        if made and self.projector_learning_rate is not None:
            projector = {id(p) for n, p in self.model.named_parameters() if part_of(n) == "projector"}
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in projector]
                group["params"] = [p for p in group["params"] if id(p) not in projector]
                if own:
                    optimizer.add_param_group({**group, "params": own, "lr": self.projector_learning_rate})
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        if made:
            self.before_first_step(self)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.optimization.factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.may_lack_pictures:  # after DeepSpeed's own hooks, so that backward meets the parts in the order of other ranks
            self.absent = AbsentPicture(self.model)
        return prepared

    def step_metrics(self) -> dict[str, float]:
        return {}

    def let_go(self) -> None:
        """Takes out of the model what training had put there, and lets models be made whole again."""
        if self.absent is not None:
            self.absent.remove()
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):  # TRL's head or ours; accelerate's
            self.model.__dict__.pop(name, None)  # else accelerate leaves the next phase without its precision
        if self.way.zero is not None:
            unset_hf_deepspeed_config()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)
        pictured = prepared.pop("pictured", None)  # whether any rank's share of this step has a picture
        if pictured is not None and self._sparing is not None:
            self._sparing.idle = () if pictured else SEEING
        picture = prepared.pop("absent_picture", None)
        if self.absent is not None:
            self.absent.picture = picture
        return prepared

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self._step_tokens = getattr(self, "_step_tokens", 0) + inputs["input_ids"].numel()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = getattr(self, "_step_loss", 0) + loss
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        step = self.state.global_step  # not the scheduler's: DeepSpeed has moved that on by now
        rate = self.args.learning_rate * self.optimization.factor(step)
        self.report(step + 1, self._step_loss, torch.as_tensor(norm), rate, self._step_tokens, self.step_metrics())
        self._step_loss, self._step_tokens = 0, 0
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        Trainer._save_checkpoint(self, model, trial)  # without TRL's model card

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.way.zero is None:  # else DeepSpeed's checkpoint holds the weights
            super().save_model(output_dir, _internal_call)
        elif self.way.ranks.main:
            Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)
        self.way.ranks.barrier()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        out = Path(output_dir or self.args.output_dir)
        out.mkdir(parents=True, exist_ok=True)
        save_weights(state_dict or trained_state(self.model), out / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = model or self.model
        load_weights(model, Path(resume_from_checkpoint) / WEIGHTS, trained_state(model))
