"""Released models in place of trained ones: adaptation=checkpoint and safety_tune=checkpoint.

Such a stage trains nothing and reads no data: it checks that the released model fits the one that it stands behind, so that
the two can be merged, and writes it once in our layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlsafe.data.rows import Purpose, TrainingData
from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.assembled import FILES, Dtype, copy_licences
from vlsafe.registry import register
from vlsafe.sources import Source
from vlsafe.stage import StageContext
from vlsafe.train.adaptation import Adaptation
from vlsafe.train.tuning import Order, SafetyTune

if TYPE_CHECKING:
    from vlsafe.model.released import Lvlm

Rows = Literal["exact", "parent_rows"]
# Released models, of which no two share the shapes of their weights, and the option of `adaptation` that stands for each.
OPTIONS = {
    "llava-hf/llava-1.5-7b-hf": "checkpoint",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen25_vl_3b_released",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen25_vl_7b_released",
}


@register("adaptation", "checkpoint")
@dataclass(frozen=True)
class ReleasedAdaptation(Adaptation):
    """A released vision-language model as the role `adapted`; model=from_lvlm makes the `base` that goes with it.

    `vocabulary`: where the parent has more rows, `parent_rows` takes the last ones from it; `exact` is an error.
    """

    one_process: ClassVar[bool] = True

    source: Source
    dtype: Dtype = "as_stored"
    vocabulary: Rows = "exact"

    @property
    def cost_units(self) -> float:
        return 1.0

    def reads(self, field: str) -> Sequence[str]:
        return FILES

    def purposes(self) -> tuple[Purpose, ...]:
        return ()

    def check_model(self, model: Any) -> None:
        """What is known without a file of theirs; `check_fits` compares the weights."""
        behind = getattr(model, "lvlm", None)
        if self.source.folder is not None or behind is None or behind.folder is not None:
            return
        if self.source.id != behind.id and {self.source.id, behind.id} <= {*OPTIONS}:
            raise ConfigError(
                f"adaptation.source.id={self.source.id}: does not fit a model that is taken from {behind.id}, whose weights"
                f" have other shapes: set adaptation={OPTIONS[behind.id]}, or another model"
            )

    def check_order(self, order: str) -> None:
        if order != "after":
            raise ConfigError(
                f"safety_tune.order={order}: adaptation=checkpoint is a released model, which was not made from the tuned one; "
                "set safety_tune.order=after, or an adaptation that trains"
            )

    def run(self, data: TrainingData, ctx: StageContext) -> None:
        publish(self.source, self.dtype, self.vocabulary, "adaptation", ctx)


@register("safety_tune", "checkpoint")
@dataclass(frozen=True)
class ReleasedTuning(SafetyTune):
    """A released safety-tuned vision-language model as the role `tuned`, or LoRA adapters that are added to the parent.

    `vocabulary` as in adaptation=checkpoint.
    """

    one_process: ClassVar[bool] = True

    source: Source
    dtype: Dtype = "as_stored"
    vocabulary: Rows = "exact"
    order: Order = "after"

    @property
    def cost_units(self) -> float:
        return 1.0

    def reads(self, field: str) -> Sequence[str]:
        return FILES

    def purposes(self) -> tuple[Purpose, ...]:
        return ()

    def check(self) -> None:
        if self.order != "after":
            raise ConfigError(
                f"safety_tune.order={self.order}: safety_tune=checkpoint is a released model, which is what tuning ended with; "
                "set safety_tune.order=after"
            )

    def run(
        self, data: TrainingData, ctx: StageContext, *, text_only: bool = False, adaptation: Adaptation | None = None
    ) -> None:
        publish(self.source, self.dtype, self.vocabulary, "safety_tune", ctx)


def publish(source: Source, dtype: Dtype, rows: Rows, group: str, ctx: StageContext) -> None:
    """Write the released model to `ctx.out`. Raises `CheckError` where it does not fit `ctx.parents["model"]`."""
    from vlsafe.model.adapters import ADAPTER, add_adapters
    from vlsafe.model.load import template_hash
    from vlsafe.model.original import parts_of
    from vlsafe.model.released import expected, open_lvlm, write_lvlm
    from vlsafe.model.shown import limited_as

    if not ctx.ranks.main:
        return
    where = source.where()
    ctx.progress(0, 1, f"reading {where}")
    parent = open_lvlm(ctx.parents["model"], "the model before it")
    folder = source.fetch(FILES)
    told: dict[str, Any] = {}
    if (folder / ADAPTER).is_file():
        if group == "adaptation":
            raise CheckError(f"{where}: LoRA adapters; adaptation=checkpoint needs a whole model, projector included")
        model = parent
        ctx.facts["adapted_layers"] = add_adapters(model, folder, where)
    else:
        model = open_lvlm(folder, where, lambda: parts_of(parent))
        check_fits(model, parent)
        if rows == "parent_rows" and model.rows < parent.rows:
            model.config.get_text_config().vocab_size = parent.rows
            model.names, model.shapes = expected(model.config, where)
        check_rows(model, parent, group)
        told = limited_as(model.processor, parent.processor)
    write_lvlm(model, ctx.out, dtype, parent.places, lambda done, total: ctx.progress(done, total, "writing the model"))
    copy_licences(folder, ctx.out)
    template, before = template_hash(model.processor), template_hash(parent.processor)
    if template != before:
        told["template_hash_of_the_model_before_it"] = before
    ctx.facts |= told | {
        "template_hash": template,
        "processor": "its own" if model.own and model is not parent else "that of the model before it",
        "vocabulary": {"rows": model.shapes[_embedding()][0], "rows_of_the_released_model": model.rows},
    }


def _embedding() -> str:
    from vlsafe.model.released import EMBEDDING

    return EMBEDDING


def check_fits(model: Lvlm, parent: Lvlm) -> None:
    """Raises `CheckError` unless both are of one architecture, with the same tower, tokens and pictures.

    A chat template of its own is no error: the model was trained with it, and is asked with it. The manifest says so.
    """
    from vlsafe.model.from_lvlm import tokens_of_processor
    from vlsafe.model.released import VOCABULARY, same_text_settings
    from vlsafe.model.shown import check_pictures
    from vlsafe.model.vocabulary import check_tokens

    pair = f"{model.where} does not fit {parent.where}"
    one, other = model.config.architectures[0], parent.config.architectures[0]
    if one != other:
        raise CheckError(f"{pair}: it is a {one}, and that a {other}")
    odd = sorted(model.shapes.keys() ^ parent.shapes.keys())
    if odd:
        raise CheckError(f"{pair}: {len(odd)} tensors are in one of them only, such as '{odd[0]}'")
    for name, shape in model.shapes.items():
        if shape != parent.shapes[name] and not (name in VOCABULARY and shape[1:] == parent.shapes[name][1:]):
            raise CheckError(f"{pair}: '{name}' is {shape} in it and {parent.shapes[name]} there")
    same_text_settings(model.config, parent.config, model.where, parent.where)
    for name in ("image_token_id", "vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"):
        mine, theirs = getattr(model.config, name, None), getattr(parent.config, name, None)
        if mine != theirs:
            raise CheckError(f"{pair}: its {name} is {mine}, and there it is {theirs}")
    for name in ("model_type", "image_size", "patch_size", "num_attention_heads", "hidden_act", "layer_norm_eps"):
        mine, theirs = (getattr(x.config.vision_config, name, None) for x in (model, parent))
        if mine != theirs:
            raise CheckError(f"{pair}: the {name} of its tower is {mine}, and there it is {theirs}")
    check_pictures(model.processor, parent.processor, pair)
    if model.own:
        rows = min(model.rows, parent.rows)
        check_tokens(tokens_of_processor(model), tokens_of_processor(parent), rows, model.where, parent.where)


def check_rows(model: Lvlm, parent: Lvlm, group: str) -> None:
    """Raises `CheckError` unless both vocabularies, as they will be written, have as many rows."""
    name = _embedding()
    own, theirs = model.shapes[name][0], parent.shapes[name][0]
    if own == theirs:
        return
    if own < theirs:
        told = f"set {group}.vocabulary=parent_rows to take the last ones from the latter"
    else:
        told = "set model.vocabulary=multiple_of_64, or a model.lvlm with as many rows"
    raise CheckError(f"{model.where} has a vocabulary of {own} rows and {parent.where} of {theirs}: {told}")
