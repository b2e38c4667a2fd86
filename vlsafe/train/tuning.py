"""Safety tuning: group `safety_tune`. It teaches a model to refuse harmful requests, with helpful data mixed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vlsafe.data.mix import Mixed, Subset, counts
from vlsafe.data.rows import Purpose, TrainingData
from vlsafe.errors import CheckError, ConfigError
from vlsafe.registry import Component, register
from vlsafe.settings import Fraction, Seed, added, spec_of
from vlsafe.stage import StageContext
from vlsafe.train.adaptation import Adaptation, run_and_save
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization, SaveDtype
from vlsafe.train.phase import Method, Part, Phase

Order = Literal["after", "before", "joint"]
TrainableParts = tuple[Literal["language_model", "projector", "vision_tower"], ...]
MOST_DRAWN = 64  # times the rows that are needed, when looking for rows without pictures


class SafetyTune(Component):
    """Base of the group `safety_tune`: from the artifact `ctx.parents["model"]` to a model artifact in `ctx.out`."""

    trains: ClassVar[bool] = True  # false: there is no such stage
    mixes_instructions: ClassVar[bool] = False  # true: it may mix in the adaptation's rows, and takes its filter with them
    order: Order
    save_dtype: SaveDtype = "parent"  # of the weights that are published

    @property
    def cost_units(self) -> float:
        """Training steps, for the estimate of time."""
        return 0.0

    def check(self) -> None:
        """Raises `ConfigError` where settings contradict each other: called when cells are composed."""

    def check_text_only(self) -> None:
        """Raises `ConfigError` where a model without pictures can't be tuned so: called when cells are composed."""

    def purposes(self) -> tuple[Purpose, ...] | None:
        """What rows are asked of `data` for: those alone are in the key. None where that isn't said."""
        return None

    def joint_spec(self) -> dict[str, Any]:
        """What of the settings changes a joint training: the part of its key."""
        spec: dict[str, Any] = spec_of(self)
        return spec

    def run(
        self, data: TrainingData, ctx: StageContext, *, text_only: bool = False, adaptation: Adaptation | None = None
    ) -> None:
        """`text_only`: rows without pictures only, since the projector is untrained. `adaptation`: tune jointly with it.

        Raises `CheckError` where training would compute something silently wrong, `StageInterrupted` on request.
        """
        raise TypeError(f"safety_tune={self.component_name} does not train")


@register("safety_tune", "none")
@dataclass(frozen=True)
class NoTuning(SafetyTune):
    """The model stays as adaptation left it."""

    order: Order = "after"
    trains: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Trained(SafetyTune):
    """Base of the tunings that train, on whatever rows and with whatever loss: the settings they share."""

    optimization: Optimization  # batch_size counts rows; pairs for dpo, answers for kto
    helpful: Fraction  # share of the rows that keep the model helpful
    order: Order = "after"
    trainable: TrainableParts = ("language_model", "projector")
    seed: Seed = 0
    lora: Lora | None = added(None)  # adapters of the language model in place of its weights; other parts in full
    save_dtype: SaveDtype = added("parent")  # of the weights that are published; parent: as those that training starts from

    @property
    def cost_units(self) -> float:
        return float(self.optimization.steps)

    def check(self) -> None:
        if not self.trainable:
            raise ConfigError("safety_tune.trainable=[]: nothing would be trained; name language_model, projector or both")
        if self.order == "before":
            check_text_only(self.trainable)
        if self.order == "joint":
            self.check_joint()
        if self.lora is not None:
            self.lora.check("safety_tune.lora", self.trainable)
        self.optimization.check(
            "safety_tune.optimization", self.trainable, self.lora.projector_learning_rate if self.lora else None
        )

    def check_joint(self) -> None:
        """Raises `ConfigError` for what a training can't have that is the adaptation's with more rows."""
        if set(self.trainable) != {"language_model", "projector"}:
            raise ConfigError(
                f"safety_tune.trainable={list(self.trainable)}: joint training trains what the adaptation trains;"
                " set [language_model, projector], or safety_tune.order=after"
            )
        if self.lora is not None:
            raise ConfigError(
                "safety_tune.lora: joint training trains as the adaptation does; set safety_tune=sft (adaptation=llava_lora"
                " has adapters), or safety_tune.order=after"
            )

    def check_text_only(self) -> None:
        check_text_only(self.trainable)

    def train(
        self,
        method: Method,
        rows: Callable[[], Sequence[Any]],
        ctx: StageContext,
        text_only: bool,
        options: dict[str, Any] | None = None,
        sift: Callable[[StageContext, Callable[[str], None]], None] | None = None,
    ) -> None:
        """One phase of `method`, published as a model; `options` are those of its loss."""

        parts: tuple[Part, ...] = ("language_model",) if text_only else self.trainable
        made = Phase(method, method, rows, self.optimization, parts, self.seed, options or {}, self.lora, sift=sift)
        run_and_save([made], ctx, self.save_dtype)


@register("safety_tune", "sft")
@dataclass(frozen=True)
class Supervised(Trained):
    """Supervised tuning on refusals (as VLGuard, arXiv 2402.02207: post-hoc is `after`, mixed is `joint`).

    `joint` shows in one shuffled order the rows that adaptation and tuning would see one after the other, under the
    adaptation's optimisation, with its adapters where it has them, published in its dtype; `optimization` then only says how
    many rows the tuning brings. `helpful` is the share of the adaptation's instructions among the rows.
    """

    mixes_instructions: ClassVar[bool] = True

    def purposes(self) -> tuple[Purpose, ...]:
        return asked({"instruct": self.helpful, "safety": 1.0 - self.helpful})

    def joint_spec(self) -> dict[str, Any]:
        return {"name": self.component_name, "rows": self.optimization.rows, "helpful": self.helpful, "seed": self.seed}

    def run(
        self, data: TrainingData, ctx: StageContext, *, text_only: bool = False, adaptation: Adaptation | None = None
    ) -> None:
        """With `adaptation`, and not jointly: its filter reads the instructions here too."""
        from vlsafe.train.filter import Wanted

        parts = counts({"helpful": self.helpful, "safety": 1.0 - self.helpful}, self.optimization.rows)
        if adaptation is not None and self.order == "joint":
            safety = data.supervised("safety", parts["safety"], self.seed) if parts["safety"] else []
            run_and_save(adaptation.phases(data, more_rows=parts["helpful"], more=safety), ctx, adaptation.save_dtype)
            return

        judge, most = (None, 1.0) if adaptation is None else (adaptation.filter, adaptation.most_removed)
        wanted = Wanted(
            data, "instruct", parts["helpful"], self.seed, judge, most,
            lambda source, n: draw(source, n, text_only, "instruct"),
        )  # fmt: skip

        def unfiltered() -> Sequence[Any]:
            return draw(lambda n: data.helpful(n, self.seed), parts["helpful"], text_only, "instruct")

        def rows() -> Sequence[Any]:
            helpful = unfiltered() if judge is None else wanted.read()
            safety = draw(lambda n: data.supervised("safety", n, self.seed), parts["safety"], text_only, "safety")
            return Mixed([helpful, safety], self.seed)

        self.train("sft", rows, ctx, text_only, sift=wanted.sift)


def asked(shares: Mapping[Purpose, float]) -> tuple[Purpose, ...]:
    """The purposes that have a share."""
    return tuple(purpose for purpose, share in shares.items() if share > 0)


def check_text_only(trainable: Sequence[str]) -> None:
    """Raises `ConfigError` where a model whose projector is untrained could not be tuned as asked."""
    if "language_model" not in trainable or "vision_tower" in trainable:
        raise ConfigError(
            f"safety_tune.trainable={list(trainable)}: before adaptation, or without it, there are no pictures, so only the"
            " language model can be tuned; set [language_model] or [language_model, projector]"
        )


def draw(source: Callable[[int], Sequence[Any]], n: int, text_only: bool, purpose: str) -> Sequence[Any]:
    """`n` rows of a seeded source; with `text_only` the first `n` without pictures, drawing more until there are enough.

    Raises `CheckError` where hardly any row is without pictures.
    """
    if n == 0:
        return []
    drawn = n
    while True:
        rows = source(drawn)
        if not text_only:
            return rows
        kept = [place for place, row in enumerate(rows) if not row["images"]]
        if len(kept) >= n:
            return Subset(rows, kept[:n])
        if drawn >= n * MOST_DRAWN:
            raise CheckError(
                f"only {len(kept)} of {drawn} rows for {purpose} are without pictures, and {n} are needed: tuning before"
                " adaptation, or without it, needs text rows; lower safety_tune.optimization.steps or choose other data"
            )
        drawn *= 2
