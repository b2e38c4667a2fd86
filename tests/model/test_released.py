"""Released models in every layout: one model whatever its names, every tensor accounted for, and roles made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.conftest import CLIP, LLAMA2, LLAVA, ORIGINAL, VICUNA
from vlsafe.errors import CheckError, ConfigError
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.stage import run as merge
from vlsafe.model.from_lvlm import FromLvlm
from vlsafe.model.load import load_model, load_processor, template_hash
from vlsafe.model.original import tower_parts
from vlsafe.model.parts import LAYOUTS
from vlsafe.model.released import open_lvlm, write_lvlm
from vlsafe.model.weights import INDEX, SINGLE, open_checkpoint
from vlsafe.sources import Source
from vlsafe.stage import StageContext
from vlsafe.stand_in import lvlms
from vlsafe.train.released import ReleasedAdaptation, ReleasedTuning

Hub, Stage = Callable[[str], Source], Callable[..., StageContext]
LVLM_LAYOUTS = [layout.name for layout in LAYOUTS if layout.name.startswith("llava")]
MIXED = "ys-zong/llava-v1.5-7b-Mixed"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("released")

    def make(layout: str = "llava, transformers 4", **settings: Any) -> Path:
        folder = root / str(len(list(root.iterdir())))
        lvlms.write_lvlm(folder, layout, **settings)
        return folder

    return make


@pytest.fixture(scope="module")
def base(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    FromLvlm(hub(VICUNA), hub(LLAVA)).build(StageContext(out, out / "work"))
    return out


@pytest.fixture(scope="module")
def adapted(hub: Hub, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapted")
    ReleasedAdaptation(hub(LLAVA)).run(None, StageContext(out, out / "work", {"model": base}))  # type: ignore[arg-type]
    return out


def clip_parts(hub: Hub) -> Callable[[], Any]:
    return lambda: tower_parts(Path(str(hub(CLIP).path)), "clip", "vicuna")


@pytest.mark.parametrize("layout", LVLM_LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_is_the_same_model(layout: str, shards: int, hub: Hub, released: Any, tmp_path: Path) -> None:
    folder = released(layout, dtype="float32", shards=shards)
    assert (folder / (SINGLE if shards == 1 else INDEX)).is_file()
    write_lvlm(open_lvlm(folder, layout, clip_parts(hub)), tmp_path / "out", "as_stored")
    model, processor = load_model(tmp_path / "out", "cpu"), load_processor(tmp_path / "out")
    expected = lvlms.make_lvlm("vicuna", "clip", 7)[0].state_dict()
    rows = 387 if layout == lvlms.LIUHAOTIAN else 448
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor[:rows], expected[name][:rows]), name
        assert tensor.shape == expected[name].shape, name
    assert processor.image_token_id == model.config.image_token_id
    assert processor.patch_size == model.config.vision_config.patch_size
    assert set(open_checkpoint(tmp_path / "out").tensors) == set(expected)  # one layout is written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_kept_or_set(dtype: Any, released: Any, tmp_path: Path) -> None:
    model = open_lvlm(released(dtype=dtype), "it")
    for wanted, expected in (("as_stored", dtype), ("bf16", "bfloat16"), ("fp32", "float32")):
        write_lvlm(model, tmp_path / wanted, wanted)  # type: ignore[arg-type]
        assert {info.dtype for info in open_checkpoint(tmp_path / wanted).tensors.values()} == {expected}
        assert load_model(tmp_path / wanted, "cpu").dtype == getattr(torch, expected)


def test_a_tied_model_is_read_with_its_copy_or_without(released: Any, tmp_path: Path) -> None:
    folder = released(llm="smollm2", shards=1, dtype="float32")
    write_lvlm(open_lvlm(folder, "it"), tmp_path / "one", "as_stored")
    weights = load_file(folder / SINGLE)
    copied = weights | {"language_model.lm_head.weight": weights["language_model.model.embed_tokens.weight"].clone()}
    save_file(copied, folder / SINGLE)
    write_lvlm(open_lvlm(folder, "it"), tmp_path / "two", "as_stored")
    assert (tmp_path / "one" / SINGLE).read_bytes() == (tmp_path / "two" / SINGLE).read_bytes()
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "one").tensors
    copied["language_model.lm_head.weight"] += 1
    save_file(copied, folder / SINGLE)
    with pytest.raises(CheckError, match="ties the output matrix to the embedding, and the file holds another one"):
        open_lvlm(folder, "it")


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.pop(name)


def _with(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _without("multi_modal_projector.linear_2.bias"),
            "1 tensors are missing, such as 'model.multi_modal_projector.linear_2",
        ),
        (_without("language_model.model.layers.1.self_attn.v_proj.weight"), "1 tensors are missing"),
        (_with("language_model.model.layers.7.mlp.up_proj.weight", 2, 2), "1 tensors belong to nothing that config.json"),
        (_with("vision_tower.embeddings.class_embedding", 24), "are one tensor, twice"),
        (_with("transformer.wte.weight", 2), "no known layout has the tensor names transformer.wte.weight"),
        (_with("multi_modal_projector.linear_2.bias", 5), r"is \(5,\) where config.json asks for \(32,\)"),
    ],
)
def test_what_is_missing_left_over_doubled_or_misshapen_is_named(spoil: Any, message: str, released: Any) -> None:
    folder = released(shards=1)
    weights = load_file(folder / SINGLE)
    spoil(weights)
    save_file(weights, folder / SINGLE)
    with pytest.raises(CheckError, match=message):
        open_lvlm(folder, "it")


def test_the_base_of_a_released_model_has_the_untouched_language_model(hub: Hub, base: Path) -> None:
    own, words = open_checkpoint(base), open_checkpoint(Path(str(hub(VICUNA).path)))
    released = open_lvlm(Path(str(hub(LLAVA).path)), "it")
    for canonical, place in released.places.items():
        stored = canonical.replace("model.language_model.", "model.")
        if stored in words.tensors:
            rows = words.tensors[stored].shape[0]
            assert torch.equal(own.read(canonical)[:rows], words.read(stored)), canonical
            assert torch.equal(own.read(canonical)[rows:], place.read()[rows:]), canonical
            if "layernorm" not in canonical and "norm.weight" not in canonical:
                assert not torch.equal(own.read(canonical), place.read()), canonical
        else:
            assert torch.equal(own.read(canonical), place.read()), canonical
    assert template_hash(load_processor(base)) == template_hash(released.processor)


def test_released_models_are_roles_that_merge(hub: Hub, stage: Stage, base: Path, adapted: Path) -> None:
    ctx = stage(model=adapted)
    ReleasedTuning(hub(MIXED), vocabulary="parent_rows").run(None, ctx)  # type: ignore[arg-type]
    tuned, before = open_checkpoint(ctx.out), open_checkpoint(adapted)
    table = "model.language_model.embed_tokens.weight"
    assert torch.equal(tuned.read(table)[387:].float(), before.read(table)[387:].float().bfloat16().float())
    assert ctx.facts["processor"] == "that of the model before it"
    assert ctx.facts["template_hash"] == template_hash(load_processor(adapted))
    for one, other in ((base, adapted), (adapted, ctx.out)):
        made = stage(model_0=one, model_1=other, carrier=other)
        merge(Linear(weights=(0.5, 0.5)), made)
        assert load_model(made.out, "cpu").dtype in (torch.float16, torch.bfloat16)
        assert made.facts["tensors_merged"] == 21


def test_llavas_own_layout_needs_a_tower_and_may_leave_its_weights_out(hub: Hub, released: Any, stage: Stage) -> None:
    with pytest.raises(CheckError, match=r"LLaVA's own layout.*set model\.tower to .*clip-vit-large-patch14-336"):
        FromLvlm(hub(VICUNA), hub(ORIGINAL)).build(stage())
    bare = Source(folder=str(released(lvlms.LIUHAOTIAN, with_tower=False)))
    one, other = stage(), stage()
    FromLvlm(hub(VICUNA), bare, tower=hub(CLIP), chat_template="vicuna").build(one)
    FromLvlm(hub(VICUNA), hub(ORIGINAL), tower=hub(CLIP), chat_template="vicuna").build(other)
    assert (one.out / SINGLE).read_bytes() == (other.out / SINGLE).read_bytes()
    assert load_model(one.out, "cpu").get_input_embeddings().weight.shape[0] == 448


def test_a_language_model_of_another_family_is_no_base(hub: Hub, released: Any, stage: Stage) -> None:
    with pytest.raises(CheckError, match=r"Meta-Llama-3-8B-Instruct .*num_key_value_heads=2"):
        FromLvlm(hub("meta-llama/Meta-Llama-3-8B-Instruct"), hub(LLAVA)).build(stage())
    other = Source(folder=str(released(llm="mistral")))
    with pytest.raises(CheckError, match=r"num_key_value_heads=4 and .* has 2: they are not"):
        FromLvlm(hub(VICUNA), other).build(stage())
    with pytest.raises(CheckError, match=r"vocabulary of 387 rows and .* of 448: set model\.vocabulary=lvlm_rows"):
        FromLvlm(hub(VICUNA), hub(LLAVA), vocabulary="exact").build(stage())


def test_other_tokens_under_the_same_rows_are_no_base(hub: Hub, stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(str(hub(VICUNA).path), folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"▁the"', '"▁teh"'))
    with pytest.raises(CheckError, match="rows of the vocabulary are other tokens in"):
        FromLvlm(Source(folder=str(folder)), hub(LLAVA)).build(stage())


def publish(stage: Stage, parent: Path, source: Source, **settings: Any) -> StageContext:
    ctx = stage(model=parent)
    ReleasedTuning(source, **settings).run(None, ctx)  # type: ignore[arg-type]
    return ctx


def test_a_released_model_that_does_not_fit_is_refused(hub: Hub, released: Any, stage: Stage, adapted: Path) -> None:
    with pytest.raises(CheckError, match=r"387 rows and .* of 448: set safety_tune\.vocabulary=parent_rows"):
        publish(stage, adapted, hub(MIXED))
    for settings, message in (
        ({"tower": "siglip"}, "does not fit the model before it: .* tensors are in one of them only"),
        ({"llm": "llama3"}, "does not fit the model before it"),
    ):
        with pytest.raises(CheckError, match=message):
            publish(stage, adapted, Source(folder=str(released(**settings))))
    folder = released()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_feature_layer": -1}))
    with pytest.raises(CheckError, match="its vision_feature_layer is -1, and there it is -2"):
        publish(stage, adapted, Source(folder=str(folder)))
    with pytest.raises(CheckError, match="no vision-language model"):
        publish(stage, adapted, hub(LLAMA2))
    folder = released()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for inner, name, value, said in (
        ("vision_config", "hidden_act", "gelu_new", "the hidden_act of its tower is gelu_new"),
        ("text_config", "rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, "rope_parameters"),
    ):
        path.write_text(json.dumps(config | {inner: config[inner] | {name: value}}))
        with pytest.raises(CheckError, match=said):
            publish(stage, adapted, Source(folder=str(folder)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0\.5, 0\.5, 0\.5\] in it and \[0\.481455, .*\] there"),
        ({"image_std": [0.5, 0.5, 0.5]}, "image_std is "),
        ({"resample": 2}, "resample is 2 in it and 3 there"),
        ({"size": {"shortest_edge": 56}}, r"size is \{'shortest_edge': 56\} in it and \{'shortest_edge': 42\} there"),
        ({"rescale_factor": 0.0078125}, "rescale_factor is 0.0078125 in it"),
        ({"do_normalize": False}, "do_normalize is false in it and true there; image_mean is not set in it"),
        (
            {"do_center_crop": False, "size": {"height": 42, "width": 42}},
            "do_center_crop is false in it and true there; crop_size is not set",
        ),
    ],
)
def test_a_released_model_that_is_shown_other_pictures_is_refused(
    changes: Any, message: str, released: Any, stage: Stage, adapted: Path
) -> None:
    folder = released()
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(
        CheckError, match=rf"does not fit the model before it: they would be shown other pictures \(.*{message}"
    ):
        publish(stage, adapted, Source(folder=str(folder)))


def test_settings_of_pictures_that_do_not_act_may_differ(released: Any, stage: Stage, adapted: Path) -> None:
    folder = released()
    path = folder / "preprocessor_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"do_convert_rgb": False, "image_mean": [0.48145468, 0.4578275, 0.40821073]})
    )
    publish(stage, adapted, Source(folder=str(folder)))


def test_a_chat_template_of_its_own_is_kept_and_told(released: Any, stage: Stage, adapted: Path) -> None:
    assert "template_hash_of_the_model_before_it" not in publish(stage, adapted, Source(folder=str(released()))).facts
    folder = released()
    path = folder / "chat_template.json"
    path.write_text(json.dumps({"chat_template": "{{- 'A chat. ' -}}" + lvlms.CHAT_TEMPLATE}))
    ctx = publish(stage, adapted, Source(folder=str(folder)))
    assert ctx.facts["template_hash"] == template_hash(load_processor(ctx.out)) != template_hash(load_processor(adapted))
    assert ctx.facts["template_hash_of_the_model_before_it"] == template_hash(load_processor(adapted))


def test_released_stages_stand_only_where_they_were_made(hub: Hub) -> None:
    with pytest.raises(ConfigError, match=r"safety_tune\.order=before: .*set safety_tune\.order=after"):
        ReleasedAdaptation(hub(LLAVA)).check_order("before")
    with pytest.raises(ConfigError, match=r"safety_tune\.order=joint: .*set safety_tune\.order=after"):
        ReleasedTuning(hub(LLAVA), order="joint").check()


def write_adapter(folder: Path, model: Path, wrapped: str = "base_model.model.", **config: Any) -> dict[str, torch.Tensor]:
    """Adapters of two layers of `model`, as peft writes them; returns what they add."""
    folder.mkdir()
    tensors, added = {}, {}
    for number, part in enumerate(("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj")):
        shape = open_checkpoint(model).tensors[f"model.language_model.{part}.weight"].shape
        own = torch.Generator().manual_seed(number)
        a, b = torch.randn(4, shape[1], generator=own), torch.randn(shape[0], 4, generator=own)
        tensors[f"{wrapped}model.language_model.{part}.lora_A.weight"] = a
        tensors[f"{wrapped}model.language_model.{part}.lora_B.weight"] = b
        added[f"model.language_model.{part}.weight"] = 8 / 4 * b @ a
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return added


def test_adapters_are_added_to_the_model_before_them(stage: Stage, adapted: Path, tmp_path: Path) -> None:
    added = write_adapter(tmp_path / "adapter", adapted)
    ctx = publish(stage, adapted, Source(folder=str(tmp_path / "adapter")), dtype="fp32")
    before, after = open_checkpoint(adapted), open_checkpoint(ctx.out)
    for name in before.tensors:
        delta = after.read(name) - before.read(name).float()
        assert torch.allclose(delta, added.get(name, torch.zeros_like(delta)), atol=2e-2), name
    assert ctx.facts["adapted_layers"] == 2
    load_model(ctx.out, "cpu")


def test_what_was_trained_beside_the_adapters_is_not_left_out(stage: Stage, adapted: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", adapted)
    (tmp_path / "adapter" / "non_lora_trainables.bin").write_bytes(b"never read")
    with pytest.raises(CheckError, match=r"non_lora_trainables\.bin holds what was trained beside the adapters"):
        publish(stage, adapted, Source(folder=str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora=True, which is not understood"),
        ({"modules_to_save": ["lm_head"]}, "merge_and_unload"),
        ({"wrapped": "base_model.model.transformer."}, "no known layout|no counterpart"),
        ({"wrapped": ""}, "is no LoRA adapter of a layer"),
    ],
)
def test_adapters_of_another_kind_are_refused(config: Any, message: str, stage: Stage, adapted: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", adapted, **config)
    with pytest.raises(CheckError, match=message):
        publish(stage, adapted, Source(folder=str(tmp_path / "adapter")))
    ctx = stage(model=adapted)
    with pytest.raises(CheckError, match="needs a whole model"):
        ReleasedAdaptation(Source(folder=str(tmp_path / "adapter"))).run(None, ctx)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "preprocessor_config.json",
            {"crop_size": {"height": 56, "width": 56}},
            "pictures of 56 × 56 and the tower takes 42 × 42",
        ),
        ("processor_config.json", {"patch_size": 16}, r"patch_size is 16 in the processor and 14 in config\.json"),
        ("config.json", {"image_token_index": 5}, r"'<image>' has the id 387 in the tokenizer and 5 in config\.json"),
        ("config.json", {"architectures": ["LlavaBrandNew"]}, r"architectures\[0\] is 'LlavaBrandNew'"),
        ("config.json", {"model_type": "brand_new"}, "an architecture that transformers .* does not have"),
        ("chat_template.json", {"chat_template": "{{ raise_exception('no') }}"}, "TemplateError"),
    ],
)
def test_files_that_contradict_each_other_are_named(file: str, changes: Any, message: str, released: Any) -> None:
    path = released() / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckError, match=message):
        open_lvlm(path.parent, "it")
