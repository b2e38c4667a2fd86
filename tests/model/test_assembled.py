"""model=assembled: any language model and any tower, joined without a number of either changed; refused before slow work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.model.conftest import CLIP, LLAMA2, LLAMA3, LLAVA, SIGLIP, VICUNA, messages
from vlsafe.errors import CheckError, ConfigError, SourceError
from vlsafe.model.assembled import Assembled
from vlsafe.model.load import load_model, load_processor, template_hash
from vlsafe.model.weights import open_checkpoint
from vlsafe.sources import Source
from vlsafe.stage import StageContext
from vlsafe.stand_in.models import FAMILIES, MODELS

Hub, Stage = Callable[[str], Source], Callable[..., StageContext]
LLMS = [
    id for id in MODELS if not id.startswith(("openai/", "google/", "llava-hf/", "liuhaotian/", "ys-zong/", "Qwen/Qwen2.5-VL"))
]


def build(stage: Stage, llm: Source, tower: Source, **settings: Any) -> StageContext:
    model = Assembled(llm, tower, **({"chat_template": "vicuna"} if llm.id == VICUNA else {}), **settings)
    model.check()
    ctx = stage()
    model.build(ctx)
    return ctx


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("tower", [CLIP, SIGLIP])
def test_any_language_model_and_tower_are_joined_as_they_are(llm: str, tower: str, hub: Hub, stage: Stage) -> None:
    ctx = build(stage, hub(llm), hub(tower))
    model, processor = load_model(ctx.out, "cpu"), load_processor(ctx.out)
    words = open_checkpoint(Path(str(hub(llm).path)))
    state = model.state_dict()
    for name in words.tensors:
        own = state[name if name.startswith("lm_head") else f"model.language_model.{name.removeprefix('model.')}"]
        assert torch.equal(own[: words.tensors[name].shape[0]], words.read(name)), name
    eyes = open_checkpoint(Path(str(hub(tower).path)))
    seen = {n.removeprefix("vision_model."): n for n in eyes.tensors if n.startswith("vision_model.")}
    assert {n.removeprefix("model.vision_tower.") for n in state if n.startswith("model.vision_tower.")} == set(seen)
    for short, name in seen.items():
        assert torch.equal(state[f"model.vision_tower.{short}"], eyes.read(name).to(model.dtype)), name
    # It sees and answers: as many image tokens as features, and logits that are numbers.
    text = processor.apply_chat_template(messages("What is it?", picture=True), tokenize=False, add_generation_prompt=True)
    batch = processor(images=[Image.new("RGB", (70, 50), "red")], text=[text], return_tensors="pt", add_special_tokens=False)
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 9 == ctx.facts["image_features"]
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    assert ctx.facts["template_hash"] == template_hash(processor)
    tokenizer = processor.tokenizer
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, processor.image_token_id}
    assert tokenizer.pad_token_id not in others
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_rows_grow_by_a_named_rule_and_mean_nothing_yet(hub: Hub, stage: Stage) -> None:
    own = open_checkpoint(Path(str(hub(LLAMA2).path))).read("model.embed_tokens.weight")
    for vocabulary, rows in (("exact", len(own) + 2), ("multiple_of_64", 448)):
        table = load_model(build(stage, hub(LLAMA2), hub(CLIP), vocabulary=vocabulary).out, "cpu").get_input_embeddings().weight
        assert table.shape[0] == rows
        mean = own.float().mean(0)
        assert torch.allclose(table[len(own) :].float(), mean.expand(rows - len(own), -1), atol=1e-3)
    qwen = build(stage, hub("Qwen/Qwen2.5-7B-Instruct"), hub(CLIP))
    assert qwen.facts["vocabulary"]["rows"] == FAMILIES["qwen2"].rows  # it had rows to spare


def test_a_tied_model_stays_tied(hub: Hub, stage: Stage) -> None:
    out = build(stage, hub("HuggingFaceTB/SmolLM2-135M-Instruct"), hub(CLIP)).out
    assert "lm_head.weight" not in open_checkpoint(out).tensors
    model = load_model(out, "cpu")
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_every_end_of_an_answer_is_kept(hub: Hub, stage: Stage) -> None:
    model = load_model(build(stage, hub(LLAMA3), hub(CLIP)).out, "cpu")
    tokenizer = load_processor(build(stage, hub(LLAMA3), hub(CLIP)).out).tokenizer
    ends = [tokenizer.convert_ids_to_tokens(end) for end in model.generation_config.eos_token_id]
    assert ends == ["<|eot_id|>", "<|end_of_text|>"]
    assert model.generation_config.temperature in (None, 1.0)  # what the language model samples with is not taken over


def test_the_projector_is_the_seeds(hub: Hub, stage: Stage) -> None:
    name = "model.multi_modal_projector.linear_1.weight"
    one, again, other = (open_checkpoint(build(stage, hub(LLAMA2), hub(CLIP), seed=s).out).read(name) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_dtype_is_everywhere_the_same(hub: Hub, stage: Stage) -> None:
    for dtype, expected in (("as_stored", "float16"), ("fp32", "float32"), ("bf16", "bfloat16")):
        out = build(stage, hub(LLAMA2), hub(CLIP), dtype=dtype).out
        assert {info.dtype for info in open_checkpoint(out).tensors.values()} == {expected}
        config = json.loads((out / "config.json").read_text())
        assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {expected}


def test_the_class_token_is_a_feature_on_request_where_there_is_one(hub: Hub, stage: Stage) -> None:
    full = load_model(build(stage, hub(LLAMA2), hub(CLIP), select="full").out, "cpu")
    assert (full.config.image_seq_length, full.config.vision_feature_select_strategy) == (10, "full")
    siglip = load_model(build(stage, hub(LLAMA2), hub(SIGLIP), select="full").out, "cpu")
    assert (siglip.config.image_seq_length, siglip.config.vision_feature_select_strategy) == (9, "full")


def spoiled(source: Source, tmp_path: Path, spoil: Callable[[Path], object]) -> Source:
    folder = tmp_path / "spoiled"
    shutil.copytree(str(source.path), folder)
    spoil(folder)
    return Source(folder=str(folder))


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def pickle_it(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never read")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (edit("config.json", model_type="brand_new"), "model_type 'brand_new' is unknown to transformers"),
        (edit("config.json", model_type="brand_new", auto_map={"AutoConfig": "x.Y"}), "set model.trust_remote_code=true"),
        (edit("config.json", model_type="vit"), "no causal language model"),
        (edit("config.json", num_hidden_layers=1), r"the weights do not fit LlamaForCausalLM \(unexpected keys: 9"),
        (edit("config.json", num_hidden_layers=3), r"the weights do not fit LlamaForCausalLM \(missing keys: 9"),
        (edit("tokenizer_config.json", chat_template=None), r"no chat template; set model\.chat_template"),
        (edit("tokenizer_config.json", chat_template="{{ raise_exception('no') }}"), r"model\.chat_template: .*TemplateError"),
        (pickle_it, r"pickled, which could run code .*python -m vlsafe\.model\.convert"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "its tokenizer can't be loaded"),
    ],
)
def test_a_language_model_that_cannot_be_read_is_refused(
    spoil: Any, message: str, hub: Hub, stage: Stage, tmp_path: Path
) -> None:
    with pytest.raises(CheckError, match=message):
        build(stage, spoiled(hub(LLAMA2), tmp_path, spoil), hub(CLIP))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json there"),
        (edit("config.json", model_type="vit"), "model_type 'vit' is no vision tower that is known here; .* clip, siglip"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (
            edit("preprocessor_config.json", crop_size={"height": 56, "width": 56}),
            "pictures of 56 × 56 and the tower takes 42 × 42",
        ),
        (pickle_it, "pickled, which could run code"),
    ],
)
def test_a_tower_that_cannot_be_read_is_refused(spoil: Any, message: str, hub: Hub, stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=message):
        build(stage, hub(LLAMA2), spoiled(hub(CLIP), tmp_path, spoil))


def test_a_language_model_in_place_of_a_tower_is_refused(hub: Hub, stage: Stage) -> None:
    with pytest.raises(CheckError, match="model_type 'llama' is no vision tower"):
        build(stage, hub(LLAMA2), hub(LLAMA2))
    with pytest.raises(CheckError, match="model_type 'llava' is no causal language model"):
        build(stage, hub(LLAVA), hub(CLIP))


def test_a_folder_that_is_not_there_and_a_layer_that_is_not_are_named(hub: Hub, stage: Stage) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        build(stage, Source(folder="/nowhere/at/all"), hub(CLIP))
    with pytest.raises(ConfigError, match=r"model\.feature_layer=-9: the tower has 3 layers"):
        build(stage, hub(LLAMA2), hub(CLIP), feature_layer=-9)
    with pytest.raises(ConfigError, match=r"model\.chat_template=vicunia: .*did you mean 'vicuna'"):
        replace(Assembled(hub(LLAMA2), hub(CLIP)), chat_template="vicunia").check()
