"""The families of vision-language models: one record each, with all that has to be known about one to train, merge and ask it.

A record says which class a checkpoint is of, which part a tensor belongs to under the names of each of its layouts, what the
processor makes of a picture, and how many image tokens that is. A new family is a new record in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.files import read_json

LANGUAGE_MODEL, LM_HEAD = "model.language_model.", "lm_head."
TOKEN_TYPES = "mm_token_type_ids"
Size = tuple[int, int]  # of a picture: width, height in pixels


@dataclass(frozen=True)
class Layout:
    """Prefixes of stored names and the canonical prefixes that they stand for. The longest one that fits counts."""

    name: str
    prefixes: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """`layouts` are in the order in which `layout_of` tries them. `blank`, `image_tokens` and `shown_as` are given a
    processor."""

    name: str
    architecture: str  # transformers' class: `architectures[0]` of a config.json
    processor: str  # transformers' class: `processor_class` of a processor_config.json
    parts: Mapping[str, str]  # canonical prefix -> part, beside the language model; the longest one that fits counts
    layouts: tuple[Layout, ...]
    picture_inputs: tuple[str, ...]  # what the processor makes of pictures; of several, they stand one after the other in each
    tower_settings: str  # what of a processor has to be as the tower has it
    token_types: bool  # the model needs to be told which tokens are a picture's, or it gives them the positions of text
    blank: Callable[[Any], Size]  # the size of a blank picture
    image_tokens: Callable[[Any, Size], int]  # of one picture
    shown_as: Callable[[Any, Size], Size]  # a size that has as many of them: the same for all pictures where all become alike
    shapes: Callable[[Mapping[str, Any]], list[Any]]  # of each picture of `pictures`: the same shape makes as many features
    load_processor: Callable[[Path], Any]
    keeps_sizes: bool = False  # a picture keeps its size, between the limits `size` of the processor; else all get one size

    def pictures(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """What goes to the model with pictures, of the image processor's result."""
        return {name: made[name] for name in self.picture_inputs}


def feature_counts(model: Any, pictures: Mapping[str, Any]) -> list[int]:
    """The number of features that a model makes of each picture, by asking its tower. `pictures` as `Family.pictures` gives."""
    import torch

    with torch.inference_mode():
        found = model.get_image_features(**on_device(pictures, model.device, model.dtype)).pooler_output
    return [int(features.shape[0]) for features in found]


def on_device(tensors: Mapping[str, Any], device: Any, dtype: Any) -> dict[str, Any]:
    """All of them on a device; of those that hold no whole numbers, also in a dtype."""
    return {n: t.to(device, dtype) if t.is_floating_point() else t.to(device) for n, t in tensors.items()}


def _auto_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _llava_blank(processor: Any) -> Size:
    """What the processor makes of every picture."""
    size = getattr(processor.image_processor, "crop_size", None) or processor.image_processor.size
    return size["width"], size["height"]


def _llava_image_tokens(processor: Any, size: Size) -> int:
    from PIL import Image

    ids = processor(images=[Image.new("RGB", size)], text=[processor.image_token])["input_ids"][0]
    return sum(1 for token in ids if token == processor.image_token_id)


def _llava_shown_as(processor: Any, size: Size) -> Size:
    """What is cropped in the end, or stretched to a width and a height, is of that size whatever it was."""
    pictures = processor.image_processor
    end = dict(
        pictures.crop_size if getattr(pictures, "do_center_crop", False) else pictures.size if pictures.do_resize else {}
    )
    return (end["width"], end["height"]) if end.keys() >= {"width", "height"} else size


def _qwen_image_tokens(processor: Any, size: Size) -> int:
    pictures = processor.image_processor
    return int(pictures.get_number_of_image_patches(size[1], size[0])) // int(pictures.merge_size) ** 2


def _qwen_processor(folder: Path) -> Any:
    from vlsafe.model.qwen import Qwen2_5_VLProcessor

    return Qwen2_5_VLProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


PLAIN = MappingProxyType(
    {f"model.{kind}": f"{LANGUAGE_MODEL}{kind}" for kind in ("embed_tokens.", "layers.", "norm.")} | {LM_HEAD: LM_HEAD}
)


def _layout(name: str, *prefixes: Mapping[str, str] | Sequence[str]) -> Layout:
    """A sequence of prefixes stands for itself."""
    merged: dict[str, str] = {}
    for some in prefixes:
        merged |= some if isinstance(some, Mapping) else {p: p for p in some}
    return Layout(name, MappingProxyType(merged))


_TOWER, _PROJECTOR, _NEWLINE = "model.vision_tower.", "model.multi_modal_projector.", "model.image_newline"
_LLAVA_SAVED = {
    "language_model.model.": LANGUAGE_MODEL,
    "language_model.lm_head.": LM_HEAD,
    "vision_tower.": _TOWER,
    "multi_modal_projector.": _PROJECTOR,
    "image_newline": _NEWLINE,
}
_LLAVA_IN_MEMORY = (LANGUAGE_MODEL, _TOWER, _PROJECTOR, LM_HEAD, _NEWLINE)
LLAVA = Family(
    name="llava",
    architecture="LlavaForConditionalGeneration",
    processor="LlavaProcessor",
    parts=MappingProxyType({_TOWER: "vision_tower", _PROJECTOR: "projector", _NEWLINE: "projector"}),
    layouts=(
        _layout("llava, transformers 5 in memory", _LLAVA_IN_MEMORY),
        _layout("llava, transformers 5 on disk", _LLAVA_SAVED),
        _layout("llava, transformers 4", _LLAVA_SAVED, {"vision_tower.vision_model.": _TOWER}),
        _layout("llava, transformers 5.0 to 5.5 in memory", _LLAVA_IN_MEMORY, {"model.vision_tower.vision_model.": _TOWER}),
        _layout(
            "llava, liuhaotian",
            PLAIN,
            {
                "model.vision_tower.vision_tower.vision_model.": _TOWER,
                "model.mm_projector.0.": f"{_PROJECTOR}linear_1.",
                "model.mm_projector.2.": f"{_PROJECTOR}linear_2.",
                "model.image_newline": _NEWLINE,
            },
        ),
    ),
    picture_inputs=("pixel_values",),
    tower_settings="patch_size, vision_feature_select_strategy, num_additional_image_tokens",
    token_types=False,
    blank=_llava_blank,
    image_tokens=_llava_image_tokens,
    shown_as=_llava_shown_as,
    shapes=lambda pictures: [tuple(values.shape) for values in pictures["pixel_values"]],
    load_processor=_auto_processor,
)

_VISUAL, _MERGER = "model.visual.", "model.visual.merger."
QWEN2_5_VL = Family(
    name="qwen2.5-vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    processor="Qwen2_5_VLProcessor",
    parts=MappingProxyType({_VISUAL: "vision_tower", _MERGER: "projector"}),
    layouts=(
        _layout("qwen2.5-vl, transformers 5 in memory", (LANGUAGE_MODEL, LM_HEAD, _VISUAL)),
        _layout("qwen2.5-vl, transformers 4", PLAIN, {"visual.": _VISUAL}),
    ),
    picture_inputs=("pixel_values", "image_grid_thw"),
    tower_settings="patch_size, merge_size, temporal_patch_size",
    token_types=True,
    blank=lambda processor: (336, 336),  # as LLaVA-1.5's; pictures keep their size here, within the processor's limits
    image_tokens=_qwen_image_tokens,
    shown_as=lambda processor, size: size,
    shapes=lambda pictures: [tuple(grid) for grid in pictures["image_grid_thw"].tolist()],
    load_processor=_qwen_processor,
    keeps_sizes=True,
)

FAMILIES = (LLAVA, QWEN2_5_VL)
# What a model's forward pass is given, beside labels and what trainers add.
MODEL_INPUTS = frozenset({"input_ids", "attention_mask", TOKEN_TYPES, *(n for f in FAMILIES for n in f.picture_inputs)})


def family_of(thing: Any) -> Family:
    """The family of a model or of a processor; raises `CheckError` for one of none."""
    names = [kind.__name__ for kind in type(thing).__mro__]
    for family in FAMILIES:
        if family.architecture in names or family.processor in names:
            return family
    raise _unknown(f"{names[0]} is", "a model or processor")


def family_of_architecture(name: str, where: str) -> Family:
    """The family of an `architectures[0]`; raises `CheckError`, which begins with `where`."""
    for family in FAMILIES:
        if family.architecture == name:
            return family
    raise _unknown(f"{where}: '{name}' is", "an architecture")


def _unknown(what: str, kind: str) -> CheckError:
    known = ", ".join(family.architecture for family in FAMILIES)
    return CheckError(
        f"{what} {kind} of no family that is known here ({known}); a new one needs a record in vlsafe/model/families.py"
    )


def blank_picture(processor: Any) -> Any:
    """White, of the family's size for it."""
    from PIL import Image

    return Image.new("RGB", family_of(processor).blank(processor), "white")


def load_processor(folder: Path) -> Any:
    """The processor of a vision-language model's folder, the tokenizer of a plain language model's."""
    from transformers import AutoTokenizer

    files = [folder / name for name in ("processor_config.json", "preprocessor_config.json") if (folder / name).is_file()]
    if not files:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = {read_json(file).get("processor_class") for file in files} | set(config.get("architectures") or [])
    family = next((f for f in FAMILIES if f.processor in named or f.architecture in named), None)
    return family.load_processor(folder) if family else _auto_processor(folder)
