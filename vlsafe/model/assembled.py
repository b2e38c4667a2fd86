"""Any language model and any vision tower, joined untrained: model=assembled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlsafe.errors import CheckError, ConfigError
from vlsafe.model import templates
from vlsafe.model.assemble import Vocabulary
from vlsafe.model.components import ModelSource
from vlsafe.model.towers import Select
from vlsafe.registry import register
from vlsafe.settings import Seed
from vlsafe.sources import Source
from vlsafe.stage import StageContext

Dtype = Literal["as_stored", "fp32", "bf16", "fp16"]
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# What is needed of a repository: pickled weights never are.
LICENCES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
FILES = (
    "*.json",
    "model*.safetensors",
    "adapter_model.safetensors",
    "non_lora_trainables.*",
    "*.model",
    "*.txt",
    "*.jinja",
    *LICENCES,
)
TEMPLATE = "model.chat_template"


@register("model", "assembled")
@dataclass(frozen=True)
class Assembled(ModelSource):
    """A LLaVA of a language model's weights, a tower's, and a projector drawn from `seed`.

    The tokenizer gets `<image>`, and `<pad>` where it pads with a token that says something else. `vocabulary` says to how many
    rows the embedding grows for them. `chat_template` is null (the language model's own), a family's name, or Jinja text.
    `select`: `default` takes the patches' features, `full` also the class token's, where the tower has one.
    """

    one_process: ClassVar[bool] = True

    llm: Source
    tower: Source
    seed: Seed = 0  # of the projector
    feature_layer: int = -2
    select: Select = "default"
    vocabulary: Vocabulary = "multiple_of_64"
    chat_template: str | None = None
    dtype: Dtype = "as_stored"  # of all parts; as_stored: as the language model's
    trust_remote_code: bool = False

    def check(self) -> None:
        templates.check_name(self.chat_template, TEMPLATE)

    def reads(self, field: str) -> Sequence[str]:
        return (*FILES, "*.py") if field == "llm" and self.trust_remote_code else FILES

    def build(self, ctx: StageContext) -> None:
        from vlsafe.model.assemble import assemble
        from vlsafe.model.load import save_model, template_hash
        from vlsafe.model.parts import canonical_names
        from vlsafe.model.towers import read_tower

        if not ctx.ranks.main:
            return
        ctx.progress(0, 4, f"reading {self.tower.where()}")
        tower, pictures, record = read_tower(self.tower.fetch(self.reads("tower")))
        ctx.progress(1, 4, f"reading {self.llm.where()}")
        folder = self.llm.fetch(self.reads("llm"))
        llm, tokenizer = read_llm(folder, self.dtype, self.trust_remote_code)
        check_layer(self.feature_layer, tower.config)
        ends = ends_of(llm, tokenizer)
        processor = make_processor(
            tokenizer, pictures, tower.config, record, self.select, self.chat_template, TEMPLATE, self.llm.where()
        )
        ctx.progress(2, 4, "joining them")
        rows = llm.get_input_embeddings().weight.shape[0]
        model = assemble(
            llm,
            tower,
            processor,
            feature_layer=self.feature_layer,
            select=self.select,
            seed=self.seed,
            vocabulary=self.vocabulary,
            ends=ends,
        )
        canonical_names(model.state_dict(), self.llm.where())
        ctx.progress(3, 4, "writing the model")
        save_model(model, processor, ctx.out)
        copy_licences(folder, ctx.out)
        ctx.facts |= {
            "template_hash": template_hash(processor),
            "vocabulary": {
                "tokens": len(tokenizer),
                "rows": model.get_input_embeddings().weight.shape[0],
                "rows_of_the_language_model": rows,
            },
            "image_features": model.config.image_seq_length,
            "dtype": str(model.dtype).removeprefix("torch."),
        }


def check_layer(layer: int, vision: Any) -> None:
    """Raises `ConfigError` for a layer that the tower lacks; 0 is what goes into the first."""
    layers = vision.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise ConfigError(f"model.feature_layer={layer}: the tower has {layers} layers; set {-layers - 1} to {layers}")


def read_llm(folder: Path, dtype: Dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """A causal language model on the CPU, as stored or in `dtype`, and its tokenizer.

    Raises `CheckError` for weights that are pickled or don't fit, and for code that isn't in transformers.
    """
    import torch
    import transformers

    from vlsafe.model.load import quiet
    from vlsafe.model.parts import is_derived
    from vlsafe.model.weights import open_checkpoint

    config = read_text_config(folder, trust_remote_code)
    open_checkpoint(folder)
    with quiet():
        model, seen = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype == "as_stored" else getattr(torch, TORCH_NAMES[dtype]),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    wrong = {k: [str(n) for n in seen[k] if not is_derived(str(n))] for k in ("missing_keys", "unexpected_keys")}
    wrong["mismatched_keys"] = [str(n) for n in seen.get("mismatched_keys") or ()]
    told = "; ".join(f"{k.replace('_', ' ')}: {len(v)}, such as {v[0]}" for k, v in wrong.items() if v)
    if told:
        raise CheckError(f"{folder}: the weights do not fit {type(model).__name__} ({told})")
    return model.eval(), read_tokenizer(folder, trust_remote_code)


def read_text_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model; raises `CheckError` for another, or one that isn't in transformers."""
    import transformers

    from vlsafe.model.load import quiet
    from vlsafe.model.towers import read_config

    raw = read_config(folder)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        if "auto_map" in raw and not trust_remote_code:
            raise CheckError(
                f"{folder}: brings code of its own (auto_map in config.json), which is not run; read it, and set "
                "model.trust_remote_code=true if you trust it"
            ) from error
        raise CheckError(
            f"{folder}/config.json: model_type '{raw.get('model_type')}' is unknown to transformers {transformers.__version__}"
        ) from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckError(
            f"{folder}/config.json: model_type '{config.model_type}' is no causal language model of transformers: the joined "
            "model could not be loaded again; choose another model.llm"
        )
    return config


def read_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """Raises `CheckError` where transformers can't make one of the folder's files."""
    import transformers

    from vlsafe.model.load import quiet

    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise CheckError(
            f"{folder}: its tokenizer can't be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]}); a folder "
            "with only tokenizer.model needs the packages sentencepiece and protobuf"
        ) from error


def ends_of(llm: Any, tokenizer: Any) -> list[int] | int | None:
    """The ids that end an answer: those that the language model was released with, and the tokenizer's."""
    own = getattr(llm.generation_config, "eos_token_id", None)
    own = [own] if isinstance(own, int) else list(own or ())
    ends = list(dict.fromkeys([*own, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))
    return ends if len(ends) > 1 else ends[0] if ends else None


def make_processor(
    tokenizer: Any,
    pictures: Any,
    vision: Any,
    record: Any,
    select: Select,
    chat_template: str | None,
    setting: str,
    whose: str,
) -> Any:
    """A `LlavaProcessor`: the tokenizer with the two tokens that it lacks, and its own chat template, made to take pictures.

    Raises `CheckError` where there is no template, or none that fits (`templates.check_template`).
    """
    from transformers import LlavaProcessor

    from vlsafe.model.towers import strategy

    if tokenizer.eos_token_id is None:
        raise CheckError(f"{whose}: its tokenizer has no eos_token: set one, or the model never learns to stop")
    text = templates.with_pictures(templates.chosen_template(chat_template, tokenizer, setting, whose))
    if templates.IMAGE not in tokenizer.get_vocab():
        tokenizer.add_tokens([_plain(templates.IMAGE)], special_tokens=True)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": _plain("<pad>")})
    tokenizer.chat_template = text
    tokenizer.padding_side = "left"
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy(record, select),
        num_additional_image_tokens=int(record.class_token),
        chat_template=text,
    )
    templates.check_template(processor, setting)
    return processor


def _plain(token: str) -> Any:
    """As it stands: no blank before or after it is lost."""
    from tokenizers import AddedToken

    return AddedToken(token, special=True, normalized=False)


def copy_licences(source: Path, out: Path) -> None:
    for path in {path for pattern in LICENCES for path in source.glob(pattern)}:
        shutil.copyfile(path, out / path.name)
