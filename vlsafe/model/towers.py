"""Vision towers: one record a family, and the reader of a tower's checkpoint.

A released CLIP or SigLIP is two towers; of its tensors the text tower's and the projections into their common space are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vlsafe.errors import CheckError
from vlsafe.files import read_json

Select = Literal["default", "full"]


@dataclass(frozen=True)
class Tower:
    """A family of towers, by the `model_type` of its configuration or of the two-tower model that contains it."""

    model_types: tuple[str, ...]
    model: str  # class names in transformers
    config: str
    image_processor: str  # the one that needs no torchvision, so that pictures come out the same everywhere
    class_token: bool  # the first feature is no patch
    left_out: tuple[str, ...]  # prefixes of the tensors that a two-tower checkpoint holds besides


TOWERS = (
    Tower(
        ("clip", "clip_vision_model"),
        "CLIPVisionModel",
        "CLIPVisionConfig",
        "CLIPImageProcessorPil",
        True,
        ("text_model.", "text_projection.", "visual_projection.", "logit_scale"),
    ),
    Tower(
        ("siglip", "siglip_vision_model"),
        "SiglipVisionModel",
        "SiglipVisionConfig",
        "SiglipImageProcessorPil",
        False,
        ("text_model.", "logit_scale", "logit_bias"),
    ),
)
BY_TYPE: Mapping[str, Tower] = MappingProxyType({kind: tower for tower in TOWERS for kind in tower.model_types})
# In front of a tensor's name: as the hub has it, as transformers 5 writes it from a tower of its own, and bare.
_WRAPPERS = ("vision_model.", "vision_tower.vision_model.", "vision_tower.")


def tower_of(model_type: Any, where: str) -> Tower:
    """Raises `CheckError` for a family without a record."""
    if model_type not in BY_TYPE:
        raise CheckError(
            f"{where}: model_type '{model_type}' is no vision tower that is known here; choose one of the families "
            f"{', '.join(tower.model_types[0] for tower in TOWERS)}, or add a record to vlsafe/model/towers.py"
        )
    return BY_TYPE[model_type]


def strategy(tower: Tower, select: Select) -> Select:
    """LLaVA's `vision_feature_select_strategy`: `default` drops the first feature, which only a class token may be."""
    return select if tower.class_token else "full"


def features(vision: Any, tower: Tower, select: Select) -> int:
    """How many features a picture becomes."""
    return int((vision.image_size // vision.patch_size) ** 2) + int(tower.class_token and select == "full")


def read_tower(folder: Path) -> tuple[Any, Any, Tower]:
    """The tower with its weights as stored, its image processor, its family.

    Raises `CheckError` where a tensor is missing, left over or misshapen, and where the pictures that the image processor makes
    are not of the tower's size.
    """
    import torch
    import transformers

    from vlsafe.model.load import quiet
    from vlsafe.model.parts import is_derived
    from vlsafe.model.weights import open_checkpoint

    config = read_config(folder)
    record = tower_of(config.get("model_type"), f"{folder}/config.json")
    checkpoint = open_checkpoint(folder)
    with quiet(), torch.device("meta"):
        vision = getattr(transformers, record.config).from_dict(config.get("vision_config", config))
        shell = getattr(transformers, record.model)(vision)
    expected = shell.state_dict()
    state: dict[str, torch.Tensor] = {}
    for stored in checkpoint.tensors:
        if stored.startswith(record.left_out) or is_derived(stored):
            continue
        name = next((stored[len(p) :] for p in _WRAPPERS if stored.startswith(p)), stored)
        if name not in expected or name in state:
            raise CheckError(f"{folder}: '{stored}' is no tensor of {record.model}, or there twice; expected names such as "
                             f"'vision_model.{next(iter(expected))}'")  # fmt: skip
        state[name] = checkpoint.read(stored)
    missing = [name for name in expected if name not in state]
    misshapen = [name for name in state if state[name].shape != expected[name].shape]
    if missing or misshapen:
        first = (missing or misshapen)[0]
        what = "missing" if missing else f"of shape {tuple(state[first].shape)}, where config.json asks for another"
        raise CheckError(f"{folder}: {len(missing or misshapen)} tensors of the tower are {what}, such as '{first}'")
    with quiet(), torch.random.fork_rng(devices=[]):
        tower = getattr(transformers, record.model)(vision)
    tower.load_state_dict(state, assign=True)
    return tower.eval(), read_image_processor(folder, record, vision), record


def read_config(folder: Path) -> dict[str, Any]:
    """Raises `CheckError` for a folder without `config.json`."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckError(f"{folder}: no config.json there: a model's folder holds one, as save_pretrained writes it")
    return dict(read_json(path))


def read_image_processor(folder: Path, record: Tower, vision: Any) -> Any:
    """The image processor of the tower's folder. Raises `CheckError` where its pictures are not of the tower's size."""
    import transformers

    from vlsafe.model.load import quiet

    if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
        raise CheckError(f"{folder}: no preprocessor_config.json there, which says how pictures are prepared; copy it, too")
    with quiet():
        pictures = getattr(transformers, record.image_processor).from_pretrained(folder, local_files_only=True)
    check_size(pictures, vision, str(folder))
    return pictures


def check_size(pictures: Any, vision: Any, where: str) -> None:
    """Raises `CheckError` unless the image processor's pictures have the tower's size."""
    size = picture_size(pictures)
    if size != (vision.image_size, vision.image_size):
        raise CheckError(
            f"{where}: the image processor gives pictures of {size[0]} × {size[1]} and the tower takes "
            f"{vision.image_size} × {vision.image_size}; set {'crop_size' if _crops(pictures) else 'size'} in "
            "preprocessor_config.json to the tower's image_size, or choose the tower that it belongs to"
        )


def picture_size(pictures: Any) -> tuple[int, int]:
    size = pictures.crop_size if _crops(pictures) else pictures.size
    return size["height"], size["width"]


def _crops(pictures: Any) -> bool:
    return bool(pictures.crop_size) and bool(pictures.do_center_crop or not pictures.do_resize)
