"""The registered sources of language models with an untrained pair of eyes: group `model`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

from vlsafe.errors import ConfigError
from vlsafe.microworld.world import World
from vlsafe.registry import Component, register
from vlsafe.settings import AtLeast, PositiveFloat, PositiveInt, Seed, spec_of
from vlsafe.stage import StageContext
from vlsafe.train.optimization import Optimization


class ModelSource(Component):
    """Base of the group `model`: makes the role `base`, an aligned language model and a tower, joined untrained.

    One that also has the language model as it was before alignment sets `offers_unaligned`: that is then an artifact of its
    own, and `ctx.parents["model"]` when `build` is called.
    """

    offers_unaligned: ClassVar[bool] = False
    one_process: ClassVar[bool] = False  # true: the main rank does all of it, on the CPU, so that it is given no GPU

    @property
    def cost_units(self) -> float:
        """Training steps of `build`, for the estimate of time."""
        return 1.0

    @property
    def unaligned_cost_units(self) -> float:
        """Training steps of `build_unaligned`."""
        return 1.0

    def unaligned_spec(self) -> dict[str, Any]:
        """The settings that change the model before alignment: the part of its key."""
        spec: dict[str, Any] = spec_of(self)
        return spec

    def check(self) -> None:
        """Raises `ConfigError` where settings contradict each other: called when cells are composed."""

    def check_ready(self) -> None:
        """Raises `ConfigError` where what `build` needs is not installed: called before anything runs, if it is to run."""

    def build(self, ctx: StageContext) -> None:
        """Write the model and its processor to `ctx.out`, as `save_pretrained` does (weights as safetensors)."""
        raise TypeError(f"model={self.component_name} can't be built")

    def build_unaligned(self, ctx: StageContext) -> None:
        """Write the model before alignment to `ctx.out`, as `build` does."""
        raise TypeError(f"model={self.component_name} has no model before alignment")


@dataclass(frozen=True)
class TowerTraining:
    """How the vision tower learns what each patch shows: AdamW, 20 steps of warm-up, then half a cosine down to 5 %."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat


@register("model", "microworld")
@dataclass(frozen=True)
class Microworld(ModelSource):
    """A Llama of whole words, trained from nothing in two phases (pretraining, alignment), and a CLIP tower."""

    offers_unaligned: ClassVar[bool] = True

    pretraining: Optimization
    alignment: Optimization
    tower: TowerTraining
    seed: Seed = 0  # of the weights, the rows' order and the tower; the world has its own
    world: World = field(default_factory=World)
    width: Annotated[int, AtLeast(8)] = 96
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    feed_forward: PositiveInt = 256
    tower_width: Annotated[int, AtLeast(8)] = 64
    tower_layers: PositiveInt = 2
    tower_heads: PositiveInt = 4

    @property
    def cost_units(self) -> float:
        return float(self.alignment.steps)

    @property
    def unaligned_cost_units(self) -> float:
        return float(self.pretraining.steps)

    def unaligned_spec(self) -> dict[str, Any]:
        """Without what alignment and subclasses add, so that a variant of the aligned model starts from the same one."""
        spec = super().unaligned_spec()
        own = {f.name for f in fields(Microworld)} - {"alignment"}
        return {"name": "microworld"} | {name: value for name, value in spec.items() if name in own}

    def check(self) -> None:
        for name, training in (("pretraining", self.pretraining), ("alignment", self.alignment)):
            training.check(f"model.{name}", ("language_model",))
        for width, heads, what in ((self.width, self.heads, ""), (self.tower_width, self.tower_heads, "tower_")):
            if width % heads or width // heads % 2:
                raise ConfigError(
                    f"model.{what}width={width} over model.{what}heads={heads}: each head needs an even, whole share of the "
                    f"width; set model.{what}width to a multiple of {2 * heads}"
                )

    def build(self, ctx: StageContext) -> None:
        from vlsafe.microworld.build import align

        align(self, ctx)

    def build_unaligned(self, ctx: StageContext) -> None:
        from vlsafe.microworld.build import pretrain

        self.check()
        pretrain(self, ctx)
