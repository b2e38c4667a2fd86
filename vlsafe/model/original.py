"""LLaVA's own layout (haotian-liu/LLaVA): a language model's folder with a projector, and often the tower, in its weights.

It has no processor, and no configuration of its tower: these come from the tower's own folder, or from a model that has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlsafe.errors import CheckError
from vlsafe.model.released import EMBEDDING, VOCABULARY, Lvlm, Place, is_tied, places_of
from vlsafe.model.towers import BY_TYPE, Select, Tower, read_config, read_image_processor, strategy

VISION_TOWER = "model.vision_tower."  # in front of its canonical names
_LANGUAGE_MODELS = {"LlavaLlamaForCausalLM": "Llama", "LlavaMistralForCausalLM": "Mistral", "LlavaQwenForCausalLM": "Qwen2"}
# The settings that this reader knows the meaning of, with what each may be.
_KNOWN: Mapping[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", "cls_patch"),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "image_aspect_ratio": ("pad", "square"),
    "mm_patch_merge_type": ("flat",),
}


@dataclass(frozen=True)
class Parts:
    """What LLaVA's own layout lacks. `processor` is a whole one, if some other model's is to be used; else it is made from the
    tower's image processor, the model's own tokenizer and `chat_template`."""

    vision: Any
    record: Tower
    places: Mapping[str, Place]  # the tower's tensors, by canonical name
    pictures: Any = None
    processor: Any = None
    chat_template: str | None = None


def is_original(config: Mapping[str, Any]) -> bool:
    return "mm_vision_tower" in config


def tower_parts(folder: Path, where: str, chat_template: str | None) -> Parts:
    """Of the folder of a CLIP or SigLIP."""
    import transformers

    from vlsafe.model.load import quiet
    from vlsafe.model.towers import tower_of
    from vlsafe.model.weights import open_checkpoint

    raw = read_config(folder)
    record = tower_of(raw.get("model_type"), where)
    with quiet():
        vision = getattr(transformers, record.config).from_dict(raw.get("vision_config", raw))
    checkpoint = open_checkpoint(folder)
    places = {
        VISION_TOWER + name.removeprefix("vision_model."): Place(checkpoint, name)
        for name in checkpoint.tensors
        if not name.startswith(record.left_out)
    }
    return Parts(vision, record, places, read_image_processor(folder, record, vision), None, chat_template)


def open_original(folder: Path, raw: Mapping[str, Any], where: str, given: Callable[[], Parts] | None) -> Lvlm:
    """Raises `CheckError` where the tower is not given, and for settings whose meaning is not known here."""
    import transformers

    from vlsafe.model.assemble import wanted_rows
    from vlsafe.model.assembled import make_processor, read_tokenizer
    from vlsafe.model.load import quiet

    if given is None:
        raise CheckError(
            f"{where}: is in LLaVA's own layout, which has no processor: set model.tower to the tower that its config.json "
            f"names, {raw['mm_vision_tower']}"
        )
    parts = given()
    architecture = (raw.get("architectures") or [""])[0]
    if architecture not in _LANGUAGE_MODELS:
        raise CheckError(f"{where}: architectures[0] is '{architecture}'; known are {', '.join(_LANGUAGE_MODELS)}")
    for name, known in _KNOWN.items():
        if name in raw and raw[name] not in known:
            shown = ", ".join(map(str, known))
            raise CheckError(f"{where}: {name} is {raw[name]}, and only {shown} is understood here; convert the model with the "
                             "script that its authors give")  # fmt: skip
    places = places_of(folder, where, bool(raw.get("tie_word_embeddings", False)))
    if not any(name.startswith(VISION_TOWER) for name in places):
        places |= parts.places
    text = {name: value for name, value in raw.items() if not name.startswith("mm_") and name not in _NOT_TEXT}
    rows = text["vocab_size"] = places[EMBEDDING].info.shape[0]
    select: Select = "full" if raw.get("mm_vision_select_feature") == "cls_patch" else "default"
    processor = parts.processor
    if processor is None:
        processor = make_processor(
            read_tokenizer(folder), parts.pictures, parts.vision, parts.record, select, parts.chat_template,
            "model.chat_template", where,
        )  # fmt: skip
        text["vocab_size"] = wanted_rows(rows, len(processor.tokenizer), "multiple_of_64")
        for name in VOCABULARY:
            if name in places:
                places[name] = places[name]._replace(change=partial(grown, text["vocab_size"]))
    with quiet():
        text_config = getattr(transformers, f"{_LANGUAGE_MODELS[architecture]}Config")(**text)
        config = transformers.LlavaConfig(
            vision_config=parts.vision,
            text_config=text_config,
            image_token_index=processor.image_token_id,
            vision_feature_layer=raw.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy=strategy(parts.record, select),
            tie_word_embeddings=is_tied(text_config),
            architectures=["LlavaForConditionalGeneration"],
        )
    return Lvlm(where, folder, config, processor, places, own=parts.processor is None)


def grown(rows: int, table: Any) -> Any:
    """A vocabulary's tensor of that many rows, the new ones the mean of the old."""
    import torch

    return torch.cat([table, table.float().mean(0, keepdim=True).to(table.dtype).expand(rows - table.shape[0], -1)])


_NOT_TEXT = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map")


def parts_of(model: Lvlm) -> Parts:
    """Those of a LLaVA that has them: its tower and its whole processor."""
    kind = str(getattr(model.config.vision_config, "model_type", None))
    if kind not in BY_TYPE:
        raise CheckError(f"{model.where}: its tower is '{kind}', and LLaVA's own layout has CLIP or SigLIP")
    places = {name: place for name, place in model.places.items() if name.startswith(VISION_TOWER)}
    return Parts(model.config.vision_config, BY_TYPE[kind], places, None, model.processor)
