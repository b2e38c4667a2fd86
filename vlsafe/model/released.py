"""Released vision-language models: read from any layout tensor by tensor, every one accounted for, and written in ours.

Nothing is loaded whole: a model of any size needs the memory of a few of its tensors. What its class asks for is taken from an
empty copy of it, so that a tensor that is missing, left over, doubled or misshapen is found before any is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlsafe.errors import CheckError
from vlsafe.model.assembled import TORCH_NAMES, Dtype
from vlsafe.model.parts import canonical_names, is_derived
from vlsafe.model.weights import Checkpoint, TensorInfo, open_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

LANGUAGE_MODEL = "model.language_model."  # in front of its canonical names, in every family
EMBEDDING, OUTPUT_MATRIX = f"{LANGUAGE_MODEL}embed_tokens.weight", "lm_head.weight"
VOCABULARY = (EMBEDDING, OUTPUT_MATRIX)
# What of a language model's configuration changes what it computes and is no tensor's shape.
SETTINGS = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps")


class Place(NamedTuple):
    """Where a tensor is read from. `change` is what becomes of it on the way."""

    checkpoint: Checkpoint
    stored: str
    change: Callable[[Tensor], Tensor] | None = None

    @property
    def info(self) -> TensorInfo:
        return self.checkpoint.tensors[self.stored]

    def read(self) -> Tensor:
        tensor = self.checkpoint.read(self.stored)
        return self.change(tensor) if self.change else tensor


@dataclass
class Lvlm:
    """A model as it lies in its folder. `places` by canonical name, without a copy of a tied matrix and what is derived."""

    where: str
    folder: Path
    config: Any
    processor: Any
    places: dict[str, Place]
    own: bool = True  # it has a processor of its own; else it was given one
    names: Mapping[str, str] = field(default_factory=dict)  # canonical -> our name for it
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.places[EMBEDDING].info.shape[0]

    @property
    def dtype(self) -> str:
        """Of the embedding: what a model's dtype is taken to be."""
        return self.places[EMBEDDING].info.dtype


def places_of(folder: Path, where: str, tied: bool | None = None) -> dict[str, Place]:
    """Of a checkpoint in any layout. Raises `CheckError` for names that no layout has, and for tensors that are there twice."""
    checkpoint = open_checkpoint(folder)
    stored = canonical_names([name for name in checkpoint.tensors if not is_derived(name)], where)
    places = {canonical: Place(checkpoint, name) for canonical, name in stored.items()}
    if tied and OUTPUT_MATRIX in places:
        import torch

        if not torch.equal(places[EMBEDDING].read(), places[OUTPUT_MATRIX].read()):
            raise CheckError(
                f"{where}: config.json ties the output matrix to the embedding, and the file holds another one: set "
                "tie_word_embeddings to false in config.json, if that one is meant"
            )
        del places[OUTPUT_MATRIX]
    return places


def is_tied(config: Any) -> bool:
    return bool(config.tie_word_embeddings or getattr(config.get_text_config(), "tie_word_embeddings", False))


def open_lvlm(folder: Path, where: str, parts: Callable[[], Any] | None = None) -> Lvlm:
    """A released model in any layout. `parts()` are the tower and the processor for one that has none of its own (LLaVA's own
    layout); see `vlsafe.model.original`.

    Raises `CheckError` for an architecture that isn't known, and unless its tensors are exactly those that it asks for.
    """
    from vlsafe.model.original import is_original, open_original
    from vlsafe.model.towers import read_config

    raw = read_config(folder)
    found = open_original(folder, raw, where, parts) if is_original(raw) else _open_hub(folder, where)
    found.names, found.shapes = expected(found.config, where)
    check_tensors(found.places, found.shapes, where, fewer_rows=is_original(raw))
    return found


def _open_hub(folder: Path, where: str) -> Lvlm:
    import transformers

    from vlsafe.model.load import load_processor, quiet
    from vlsafe.model.towers import read_image_processor, tower_of

    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (ValueError, KeyError, OSError) as error:
            raise CheckError(
                f"{where}: config.json is of an architecture that transformers {transformers.__version__} does not have "
                f"({str(error).splitlines()[0][:120]})"
            ) from error
    architecture = (config.architectures or [""])[0]
    if not hasattr(config, "vision_config") or not hasattr(transformers, architecture):
        raise CheckError(f"{where}: architectures[0] is '{architecture}', which is no vision-language model of transformers")
    places = places_of(folder, where, is_tied(config))
    processor = load_processor(folder)
    if type(processor).__name__ == "LlavaProcessor":  # the class that makes the same of a picture on every machine
        record = tower_of(config.vision_config.model_type, where)
        processor.image_processor = read_image_processor(folder, record, config.vision_config)
    return Lvlm(where, folder, config, fitted(processor, config, where), places)


def fitted(processor: Any, config: Any, where: str) -> Any:
    """The processor, told what older ones were not: the patch, the selected features.

    Raises `CheckError` where it is another model's.
    """
    from vlsafe.model.templates import check_template
    from vlsafe.model.towers import tower_of

    if not hasattr(processor, "image_processor"):
        raise CheckError(f"{where}: holds no image processor: copy preprocessor_config.json, too")
    if type(processor).__name__ == "LlavaProcessor":
        record = tower_of(config.vision_config.model_type, where)
        told = {
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        }
        for name, value in told.items():
            if getattr(processor, name, None) not in (None, value):
                raise CheckError(f"{where}: {name} is {getattr(processor, name)} in the processor and {value} in config.json")
            setattr(processor, name, value)
        processor.num_additional_image_tokens = int(record.class_token)
        if processor.image_token_id != config.image_token_id:
            raise CheckError(
                f"{where}: '{processor.image_token}' has the id {processor.image_token_id} in the tokenizer and "
                f"{config.image_token_id} in config.json"
            )
    check_template(processor, where)
    return processor


def expected(config: Any, where: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """(our name, shape) by canonical name of each tensor that a model of this configuration saves."""
    import torch
    import transformers

    from vlsafe.model.load import quiet

    with quiet(), torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    state = model.state_dict()
    if is_tied(config):
        state.pop(OUTPUT_MATRIX, None)
    names = canonical_names(state, where)
    return names, {canonical: tuple(state[name].shape) for canonical, name in names.items()}


def check_tensors(
    places: Mapping[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    fewer_rows: bool = False,
) -> None:
    """Raises `CheckError` for what is missing, left over or misshapen; with `fewer_rows` the vocabulary may be shorter."""
    missing, more = sorted(shapes.keys() - places.keys()), sorted(places.keys() - shapes.keys())
    if missing:
        raise CheckError(f"{where}: {len(missing)} tensors are missing, such as '{missing[0]}': copy the checkpoint again")
    if more:
        raise CheckError(
            f"{where}: {len(more)} tensors belong to nothing that config.json describes, such as '{places[more[0]].stored}'"
        )
    for canonical, shape in shapes.items():
        own = places[canonical].info.shape
        short = fewer_rows and canonical in VOCABULARY and own[1:] == shape[1:] and own[0] <= shape[0]
        if own != shape and not short:
            raise CheckError(f"{where}: '{places[canonical].stored}' is {own} where config.json asks for {shape}")


def same_text_settings(one: Any, other: Any, whose: str, others: str) -> None:
    """Raises `CheckError` where two language models compute differently, although all shapes agree."""
    a, b = one.get_text_config(), other.get_text_config()
    for name in SETTINGS:
        x, y = getattr(a, name, None), getattr(b, name, None)
        if None not in (x, y) and x != y:
            raise CheckError(f"{whose} has {name}={x} and {others} has {y}: they are not of one architecture")
    ropes = [_positions(c) for c in (a, b)]
    if all(ropes) and ropes[0] != ropes[1]:
        raise CheckError(
            f"{whose} has rope_parameters={ropes[0]} and {others} has {ropes[1]}: they are not of one architecture"
        )


def _positions(config: Any) -> dict[str, Any]:
    """How positions are encoded in text. Sections for rows and columns (mrope) change pictures alone."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    sections = rope.pop("mrope_section", None)
    if rope.get("rope_type") == "mrope" or rope.get("type") == "mrope" or sections is not None:
        rope["rope_type"] = "default"
    rope.pop("type", None)
    return rope


def write_lvlm(
    model: Lvlm,
    out: Path,
    dtype: Dtype,
    rows_from: Mapping[str, Place] | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """The model in our layout, in one dtype, with its processor and chat template, as `save_model` writes it.

    `rows_from`: where the vocabulary's last rows come from, if a tensor of it has fewer than the configuration asks for.
    """
    import torch

    kept = TORCH_NAMES.get(dtype, model.dtype)
    layout = [TensorInfo(name, kept, model.shapes[canonical]) for canonical, name in model.names.items()]
    by_name = {name: canonical for canonical, name in model.names.items()}
    total, done = sum(info.parameters for info in layout), 0

    def tensor(info: TensorInfo) -> Tensor:
        nonlocal done
        tick(done, total)
        done += info.parameters
        canonical = by_name[info.name]
        made = model.places[canonical].read().to(getattr(torch, kept))
        if made.shape[0] < info.shape[0] and rows_from is not None:
            made = torch.cat([made, rows_from[canonical].read()[made.shape[0] : info.shape[0]].to(made.dtype)])
        return made

    write_checkpoint(out, layout, tensor)
    config = model.config
    for part in (config, config.get_text_config(), getattr(config, "vision_config", config)):
        part.dtype = getattr(torch, kept)
    config.save_pretrained(out)
    generation(model).save_pretrained(out)
    model.processor.save_pretrained(out)


def generation(model: Lvlm) -> Any:
    """What ends an answer, and what pads: nothing else of what a model was released with would be comparable."""
    from transformers import GenerationConfig

    from vlsafe.files import read_json

    tokenizer, path = model.processor.tokenizer, model.folder / "generation_config.json"
    own = read_json(path).get("eos_token_id") if path.is_file() else None
    ends = list(dict.fromkeys([*([own] if isinstance(own, int) else own or ()), tokenizer.eos_token_id]))
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )
