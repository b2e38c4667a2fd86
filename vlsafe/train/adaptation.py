"""Vision-language adaptation: group `adaptation`. It gives an aligned language model eyes, with harmless data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlsafe.data.rows import Purpose, TrainingData
from vlsafe.errors import ConfigError
from vlsafe.eval.base import Judge
from vlsafe.registry import Component, register
from vlsafe.settings import Fraction, NonNegativeInt, Seed, added, execution
from vlsafe.stage import StageContext
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization, SaveDtype
from vlsafe.train.phase import Phase


class Adaptation(Component):
    """Base of the group `adaptation`: from the artifact `ctx.parents["model"]` to a model artifact in `ctx.out`."""

    trains: ClassVar[bool] = True  # false: there is no such stage
    filter: Judge | None = None  # reads the rows before training
    most_removed: float = 0.5  # the share of the rows that it may remove
    save_dtype: SaveDtype = "parent"  # of the weights that are published

    @property
    def cost_units(self) -> float:
        """Training steps, for the estimate of time."""
        return 0.0

    def check(self) -> None:
        """Raises `ConfigError` where settings contradict each other: called when cells are composed."""
        from vlsafe.train.filter import check_filter

        if self.filter is not None:
            check_filter(self.filter)

    def check_model(self, model: Any) -> None:
        """Raises `ConfigError` for a model that it can't stand behind: called when cells are composed."""

    def check_order(self, order: str) -> None:
        """Raises `ConfigError` for an order of adaptation and safety tuning that can't be: called when cells are composed."""

    def filter_spec(self) -> dict[str, Any]:
        """The part of the key that is the filter's: which version of which judge."""
        from vlsafe.train.filter import filter_spec

        return filter_spec(self.filter)

    def filter_settings(self) -> dict[str, Any]:
        """Those of the filter's judge that its name alone doesn't say."""
        from vlsafe.train.filter import unusual

        return unusual(self.filter)

    @property
    def last_step(self) -> int | None:
        """How many steps the last phase has, which `snapshots` count; None where that isn't known."""
        return None

    def snapshots(self) -> dict[int, int]:
        """Intermediate models to keep: step of the last phase → training steps until then, those of all phases."""
        return {}

    def purposes(self) -> tuple[Purpose, ...] | None:
        """What rows are asked of `data` for: those alone are in the key. None where that isn't said."""
        return None

    def phases(self, data: TrainingData, more_rows: int = 0, more: Sequence[Any] = ()) -> list[Phase]:
        """The phases of training. For joint training the last one sees `more_rows` more of its own rows, and `more` too."""
        raise TypeError(f"adaptation={self.component_name} does not train")

    def run(self, data: TrainingData, ctx: StageContext) -> None:
        """Raises `CheckError` where training would compute something silently wrong, `StageInterrupted` on request."""
        run_and_save(self.phases(data), ctx, self.save_dtype)


def judges_name(judge: Judge | None) -> str | None:
    """What a filter is in an adaptation's own spec; its judge's settings stand beside that (`filter_spec`)."""
    return None if judge is None else judge.component_name


@register("adaptation", "none")
@dataclass(frozen=True)
class NoAdaptation(Adaptation):
    """The language model stays as it is; only text is asked of it."""

    trains: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Trained(Adaptation):
    """Base of the adaptations that train projector and language model, whatever their phases: the settings they share."""

    seed: Seed = 0
    lora: Lora | None = added(None)  # adapters of the language model in place of its weights; the projector in full
    checkpoints: NonNegativeInt = execution(0)  # intermediate models kept and evaluated: their keys are their own
    filter: Any = added(None, spec=judges_name)  # the judge whose harmful rows are replaced before training: NAME, or {name: …}
    most_removed: Fraction = execution(0.5)  # a filter that would remove more of the rows stops the stage
    save_dtype: SaveDtype = added("parent")  # of the weights that are published; parent: as those that training starts from

    def __post_init__(self) -> None:
        from vlsafe.train.filter import filter_judge

        object.__setattr__(self, "filter", filter_judge(self.filter))

    def check_phase(self, where: str, optimization: Optimization) -> None:
        """Of the phase that trains both. Raises `ConfigError` where settings contradict each other."""
        optimization.check(where, ("language_model", "projector"), self.lora.projector_learning_rate if self.lora else None)


@register("adaptation", "llava")
@dataclass(frozen=True)
class Llava(Trained):
    """LLaVA's two stages (Liu et al., arXiv 2304.08485 and 2310.03744): the projector alone on image-text pairs, then projector
    and language model on visual instructions. The vision tower stays frozen. With `lora` the second stage trains adapters of
    the language model in place of its weights, and the projector in full."""

    projector: Optimization
    instruct: Optimization

    @property
    def cost_units(self) -> float:
        return float(self.projector.steps + self.instruct.steps)

    def check(self) -> None:
        super().check()
        check_checkpoints(self.checkpoints, self.instruct.steps)
        self.projector.check("adaptation.projector", ("projector",))
        self.check_phase("adaptation.instruct", self.instruct)

    def purposes(self) -> tuple[Purpose, ...]:
        return ("projector", "instruct")

    @property
    def last_step(self) -> int | None:
        return self.instruct.steps

    def snapshots(self) -> dict[int, int]:
        """Evenly spaced over the second stage: the first has a trained projector and the language model as it was."""
        return {step: self.projector.steps + step for step in evenly(self.checkpoints, self.instruct.steps)}

    def phases(self, data: TrainingData, more_rows: int = 0, more: Sequence[Any] = ()) -> list[Phase]:
        from dataclasses import replace

        from vlsafe.data.mix import Mixed
        from vlsafe.train.filter import Wanted

        first, second = self.projector, self.instruct
        instructions = second.rows + more_rows
        steps = -(-(instructions + len(more)) // second.batch_size)
        joint = replace(second, steps=steps)

        pairs = Wanted(data, "projector", first.rows, self.seed, self.filter, self.most_removed)
        wanted = Wanted(data, "instruct", instructions, self.seed, self.filter, self.most_removed)

        def instruct() -> Sequence[Any]:
            return Mixed([wanted.read(), more], self.seed) if more else wanted.read()

        return [
            Phase("projector", "sft", pairs.read, first, ("projector",), self.seed, sift=pairs.sift),
            Phase(
                "instruct", "sft", instruct, joint, ("language_model", "projector"), self.seed, lora=self.lora, sift=wanted.sift
            ),
        ]


def check_checkpoints(count: int, steps: int) -> None:
    """Raises `ConfigError` for more checkpoints than there are steps to keep one after."""
    if count > steps:
        raise ConfigError(f"adaptation.checkpoints={count}: the phase that they are taken from has {steps} steps; set fewer")


def evenly(count: int, steps: int) -> list[int]:
    """`count` different steps from 0 on, evenly spaced over `steps`, without the last."""
    return [i * steps // count for i in range(count)]


def run_and_save(phases: Sequence[Phase], ctx: StageContext, save_dtype: SaveDtype = "parent") -> None:
    """Train the parent through `phases` and write the model artifact, its weights in `save_dtype`, to `ctx.out`."""
    from vlsafe.model.load import load_model, load_processor, save_model
    from vlsafe.train.engine import run_phases
    from vlsafe.train.split import way_of

    parent = ctx.parents["model"]
    device = way_of(ctx.execution, ctx.ranks).load_on

    def load() -> tuple[Any, Any]:
        return load_model(parent, device, train=True), load_processor(parent)

    model, processor = run_phases(load, phases, ctx, save_dtype)
    if ctx.ranks.main:
        save_model(model, processor, ctx.out)
