"""Models on the way of a training: what they are saved as, and the configuration that they are saved with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from vlsafe.stage import StageContext


class Snapshots:
    """The intermediate models of a stage's last phase: `take(step, model)` publishes what is wanted after that step, and says
    whether the phase ends there."""

    def __init__(self, processor: Any, phase: str, ctx: StageContext, dtypes: Mapping[str, Any]) -> None:
        self.processor, self.phase, self.ctx, self.dtypes = processor, phase, ctx, dtypes
        self.steps = {*ctx.snapshots, *([] if ctx.step is None else [ctx.step])}

    def take(self, step: int, model: Any) -> bool:
        publish = self.ctx.snapshots.get(step)
        if publish is not None and self.ctx.ranks.main:
            from vlsafe.model.load import save_model

            facts = {"template_hash": self.ctx.facts["template_hash"], "phase": self.phase, "step": step}
            publish(lambda out: save_model(model, self.processor, out, self.dtypes), facts)
        self.ctx.ranks.barrier()
        return step == self.ctx.step


@contextmanager
def same_config(model: Any) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Trainers write into the model's configuration (use_cache, tags); the artifact keeps what the parent had. Within what is
    yielded the model has it for a moment."""
    configs = [c for c in (model.config, model.config.get_text_config(), model.generation_config) if c is not None]
    before = [dict(vars(config)) for config in configs]

    def put(values: Sequence[Mapping[str, Any]]) -> None:
        for config, kept in zip(configs, values, strict=True):
            vars(config).clear()
            vars(config).update(kept)

    @contextmanager
    def as_before() -> Iterator[None]:
        now = [dict(vars(config)) for config in configs]
        put(before)
        try:
            yield
        finally:
            put(now)

    try:
        yield as_before
    finally:
        put(before)
