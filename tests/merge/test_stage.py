"""The merge stage over real folders: what is merged, what is copied, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.merge.conftest import LAYERS, MakeModel, Merged, llava_shapes, llava_tensors
from vlsafe.errors import CheckError, StageInterrupted
from vlsafe.merge.methods.dare_linear import DareLinear
from vlsafe.merge.methods.dare_ties import DareTies
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.methods.slerp import Slerp
from vlsafe.merge.methods.task_arithmetic import TaskArithmetic
from vlsafe.merge.methods.ties import Ties
from vlsafe.model.families import LLAVA
from vlsafe.model.parts import LAYOUTS, stored_name
from vlsafe.model.weights import INDEX, TensorInfo, open_checkpoint, write_checkpoint

Merge = Callable[..., Merged]
ONE, TWO, BASE = llava_tensors(1), llava_tensors(2), llava_tensors(3)
LANGUAGE = [n for n in llava_shapes() if n.startswith(("model.language_model.", "lm_head."))]


def changed(merged: Merged, carrier: dict[str, torch.Tensor] = TWO) -> set[str]:
    return {name for name, tensor in merged.tensors.items() if not torch.equal(tensor, carrier[name])}


def test_the_language_model_is_merged_and_the_rest_copied(make_model: MakeModel, merge: Merge) -> None:
    merged = merge(Linear(), make_model("one", ONE), make_model("two", TWO))
    assert list(open_checkpoint(merged.out).tensors) == list(open_checkpoint(merged.context.parents["carrier"]).tensors)
    for name, tensor in merged.tensors.items():
        if name in LANGUAGE:
            assert torch.equal(tensor, ((ONE[name].double() + TWO[name].double()) / 2).float())
        else:
            assert torch.equal(tensor, TWO[name])
    assert {p.name for p in merged.out.iterdir()} == {
        "model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "merge_report.json"
    }  # fmt: skip
    assert (merged.out / "chat_template.jinja").read_text() == "template of two"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("all", set(llava_shapes())),
        ("projector", {n for n in llava_shapes() if "projector" in n}),
        ("vision_tower", {n for n in llava_shapes() if "vision_tower" in n}),
        ("layers", {n for n in LANGUAGE if ".layers." in n}),
        ("layers.1-2", {n for n in LANGUAGE if ".layers.1." in n or ".layers.2." in n}),
        (("layers.0", "lm_head"), {n for n in LANGUAGE if ".layers.0." in n or n.startswith("lm_head")}),
        ("embed", {"model.language_model.embed_tokens.weight"}),
    ],
)
def test_scope_chooses_the_parts(scope: str, expected: set[str], make_model: MakeModel, merge: Merge) -> None:
    merged = merge(Linear(scope=scope), make_model("one", ONE), make_model("two", TWO))
    assert changed(merged) == expected
    assert merged.facts["tensors_merged"] == len(expected)
    assert merged.facts["tensors_copied"] == len(llava_shapes()) - len(expected)


def test_the_carrier_may_be_another_model(make_model: MakeModel, merge: Merge) -> None:
    merged = merge(Linear(), make_model("one", ONE), make_model("two", TWO), carrier=make_model("three", BASE))
    assert changed(merged, BASE) == set(LANGUAGE)
    assert torch.equal(merged.tensors["lm_head.weight"], ((ONE["lm_head.weight"].double() + TWO["lm_head.weight"]) / 2).float())


def test_identities_hold_for_whole_folders(make_model: MakeModel, merge: Merge) -> None:
    one, two, base = make_model("one", ONE), make_model("two", TWO), make_model("base", BASE)
    assert not changed(merge(Linear(weights=(0.3, 0.6)), two, two))
    assert changed(merge(Linear(weights=(1.0, 0.0), scope="all"), one, two), ONE) == set()
    assert not changed(merge(Ties(density=1.0), two, two, base=base))
    assert not changed(merge(Ties(density=1.0), two, base=base))
    assert changed(merge(Ties(density=0.0, scope="all"), one, two, base=base), BASE) == set()
    for method in (Linear, Slerp):
        assert changed(merge(method(t=0.0, scope="all"), one, two), ONE) == set()
        assert not changed(merge(method(t=1.0, scope="all"), one, two))
    for thinned, whole in ((DareLinear(density=1.0), TaskArithmetic()), (DareTies(density=1.0), Ties(density=1.0))):
        assert not changed(merge(thinned, one, two, base=base), merge(whole, one, two, base=base).tensors)
        assert not changed(merge(thinned, two, two, base=base))


def test_order_changes_nothing(make_model: MakeModel, merge: Merge) -> None:
    one, two, base = make_model("one", ONE), make_model("two", TWO), make_model("base", BASE)
    for method in (Linear(), Slerp(), TaskArithmetic(scale=0.7), Ties(density=0.4), Ties(density=0.4, trim="model")):
        first = (merge(method, one, two, base=base, carrier=two).out / "model.safetensors").read_bytes()
        second = (merge(method, two, one, base=base, carrier=two).out / "model.safetensors").read_bytes()
        assert first == second


def test_shards_give_what_single_files_give(make_model: MakeModel, merge: Merge, tmp_path: Path) -> None:
    one, two, base = make_model("one", ONE), make_model("two", TWO), make_model("base", BASE)
    infos = [TensorInfo(n, "float32", s) for n, s in llava_shapes().items()]
    (tmp_path / "sharded").mkdir()
    write_checkpoint(tmp_path / "sharded", infos, lambda info: TWO[info.name], 900)
    assert (tmp_path / "sharded" / INDEX).is_file()
    for method in (Linear(), Slerp(), Ties(density=0.4, trim="model"), DareTies(density=0.4, rescale="l1")):
        single = merge(method, one, two, base=base)
        sharded = merge(method, one, tmp_path / "sharded", base=base)
        pieces = merge(type(method)(**{**vars(method), "max_shard_gb": 1e-6}), one, two, base=base)
        assert len(list(pieces.out.glob("model-*.safetensors"))) > 3
        for other in (sharded, pieces):
            assert other.tensors.keys() == single.tensors.keys()
            assert all(torch.equal(other.tensors[name], tensor) for name, tensor in single.tensors.items())


def test_dtypes(make_model: MakeModel, merge: Merge) -> None:
    narrow = {name: tensor.bfloat16() for name, tensor in TWO.items()}
    one, two = (
        make_model("one", ONE),
        make_model("two", narrow, {"dtype": "bfloat16", "vision_config": {"torch_dtype": "bfloat16"}}),
    )
    kept = merge(Linear(), one, two)
    assert {t.dtype for t in kept.tensors.values()} == {torch.bfloat16}
    wide = merge(Linear(dtype="float32"), one, two)
    assert {t.dtype for t in wide.tensors.values()} == {torch.float32}
    name = "model.language_model.norm.weight"
    exact = (ONE[name].double() + narrow[name].double()) / 2
    assert torch.equal(wide.tensors[name], exact.float())
    assert torch.equal(kept.tensors[name], exact.float().bfloat16())
    config = json.loads((wide.out / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == config["vision_config"]["torch_dtype"] == "float32"
    assert json.loads((kept.out / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_report_tells_how_far_each_part_moved(make_model: MakeModel, merge: Merge) -> None:
    one = {n: t + 0.5 * ONE[n] for n, t in BASE.items()}
    two = {n: t - 0.25 * ONE[n] for n, t in BASE.items()}
    merged = merge(Ties(density=1.0, normalize=False), make_model("1", one), make_model("2", two), base=make_model("b", BASE))
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    result, entry = merged.tensors[name].double(), merged.entry(name)
    assert (entry["rule"], entry["part"], entry["from"]) == (
        "merged",
        "language_model.layers.1",
        ["model_0", "model_1", "base"],
    )
    for parent, tensors in {"base": BASE, "model_0": one, "model_1": two}.items():
        distance = float((result - tensors[name]).norm() / tensors[name].double().norm())
        assert entry["relative_change"][parent] == pytest.approx(distance, rel=1e-5, abs=1e-12)
    facts = merged.facts
    parts = {"language_model.embed", "language_model.norm", "language_model.lm_head"}
    parts |= {f"language_model.layers.{i}" for i in range(LAYERS)}
    assert facts["task_vector_cosine"] == {part: {"model_0·model_1": -1.0} for part in parts | {"all"}}
    assert set(facts["relative_change"]) == parts | {"all"}
    squares = [float((merged.tensors[n].double() - BASE[n]).norm()) ** 2 for n in LANGUAGE]
    norms = [float(BASE[n].double().norm()) ** 2 for n in LANGUAGE]
    assert facts["relative_change"]["all"]["base"] == pytest.approx((sum(squares) / sum(norms)) ** 0.5, rel=1e-5)
    assert facts["parameters_merged"] + facts["parameters_copied"] == sum(t.numel() for t in BASE.values())
    assert facts["copied_though_models_differ"] == {"model_0": ["projector", "vision_tower"]}
    assert merged.entry("model.multi_modal_projector.linear_1.bias")["why"] == "outside merge.scope=language_model"


def test_progress_is_told_and_a_stop_obeyed(make_model: MakeModel, merge: Merge) -> None:
    one, two = make_model("one", ONE), make_model("two", TWO)
    told: list[tuple[int, int]] = []
    merge(Linear(), one, two, progress=lambda done, total, note="": told.append((done, total)))
    assert told == sorted(told) and told[0][0] == 0 and told[-1][0] == told[-1][1]
    with pytest.raises(StageInterrupted):
        merge(Linear(), one, two, should_stop=lambda: len(told) > 0)


def test_layouts_of_names_are_matched(make_model: MakeModel, merge: Merge) -> None:
    two = make_model("two", TWO)
    expected = merge(Linear(), make_model("one", ONE), two).tensors
    for i, layout in enumerate((LAYOUTS[0], *LLAVA.layouts)):
        held = LANGUAGE if layout.name == "language model" else list(ONE)
        merged = merge(Linear(), make_model(f"one-{i}", {stored_name(n, layout): ONE[n] for n in held}), two)
        assert all(torch.equal(merged.tensors[name], tensor) for name, tensor in expected.items())
        if held is not LANGUAGE:  # and the result has the names of its carrier
            carrier = make_model(f"two-{i}", {stored_name(n, layout): t for n, t in TWO.items()})
            merged = merge(Linear(), make_model(f"three-{i}", ONE), carrier)
            assert all(torch.equal(merged.tensors[stored_name(name, layout)], tensor) for name, tensor in expected.items())


def test_tied_embeddings_stay_tied(make_model: MakeModel, merge: Merge) -> None:
    embedding = "model.language_model.embed_tokens.weight"

    def tied(tensors: dict[str, torch.Tensor], copy: bool) -> dict[str, torch.Tensor]:
        rest = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
        return rest | ({"lm_head.weight": tensors[embedding].clone()} if copy else {})

    config = {"tie_word_embeddings": True}
    once = merge(Linear(), make_model("1", tied(ONE, False), config), make_model("2", tied(TWO, False), config))
    assert "lm_head.weight" not in once.tensors
    twice = merge(Linear(), make_model("1c", tied(ONE, False), config), make_model("2c", tied(TWO, True), config))
    assert torch.equal(twice.tensors["lm_head.weight"], once.tensors[embedding])
    assert torch.equal(twice.tensors[embedding], once.tensors[embedding])
    assert twice.entry("lm_head.weight")["rule"] == "tied"
    with pytest.raises(CheckError, match=r"scope=lm_head.*tied to the embedding"):
        merge(Linear(scope="lm_head"), make_model("1d", tied(ONE, False), config), make_model("2d", tied(TWO, True), config))


def test_common_rows_of_two_vocabularies(make_model: MakeModel, merge: Merge) -> None:
    words = ("model.language_model.embed_tokens.weight", "lm_head.weight")
    longer = {n: torch.cat([t, torch.full((3, t.shape[1]), 9.0)]) if n in words else t for n, t in TWO.items()}
    one, two, base = make_model("one", ONE), make_model("two", longer), make_model("base", BASE)
    for method in (Linear(vocab="carrier_rows"), Ties(vocab="carrier_rows", density=0.5, trim="model")):
        merged = merge(method, one, two, base=base)
        equal = merge(method, one, make_model(f"equal-{method.component_name}", TWO), base=base)
        for name in words:
            assert torch.equal(merged.tensors[name], torch.cat([equal.tensors[name], longer[name][-3:]]))
            assert "carrier_rows" in merged.entry(name)["why"]
    back = merge(Linear(vocab="carrier_rows"), one, two, carrier=one)
    assert back.tensors["lm_head.weight"].shape == ONE["lm_head.weight"].shape


def test_the_template_of_the_carrier_keeps_its_name(make_model: MakeModel, merge: Merge) -> None:
    one, two = make_model("one", ONE), make_model("two", TWO)
    assert "template_hash" not in merge(Linear(), one, two).facts
    (two / "manifest.json").write_text(json.dumps({"facts": {"template_hash": "abc", "loss": 1.0}}))
    merged = merge(Linear(), one, two)
    assert merged.facts["template_hash"] == "abc" and "loss" not in merged.facts
    assert "templates_of_models" not in merged.facts
    (one / "manifest.json").write_text(json.dumps({"facts": {"template_hash": "abd"}}))
    told = merge(Linear(), one, two).facts
    assert told["template_hash"] == "abc"
    assert told["templates_of_models"] == {"carrier": "abc", "model_0": "abd", "model_1": "abc"}
    assert not (merged.out / "manifest.json").exists()


def test_derived_tensors_of_older_releases_are_copied(make_model: MakeModel, merge: Merge) -> None:
    positions = {"model.vision_tower.embeddings.position_ids": torch.arange(5)}
    merged = merge(Linear(scope="all"), make_model("one", ONE), make_model("two", TWO | positions))
    assert merged.entry("model.vision_tower.embeddings.position_ids")["why"] == "computed by the model itself"
    assert torch.equal(merged.tensors["model.vision_tower.embeddings.position_ids"], torch.arange(5))


def test_transformers_loads_the_result(merge: Merge, tmp_path: Path) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    for tie in (False, True):
        text = transformers.LlamaConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tie,
        )
        vision = transformers.CLIPVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=15, tie_word_embeddings=tie)
        models = [transformers.LlavaForConditionalGeneration(config) for _ in range(2)]
        folders = [tmp_path / f"{name}-{tie}" for name in ("one", "two")]
        for model, folder in zip(models, folders, strict=True):
            model.save_pretrained(folder)
        merged = merge(Linear(weights=(1.0, 3.0)), *folders)
        loaded, seen = transformers.LlavaForConditionalGeneration.from_pretrained(merged.out, output_loading_info=True)
        assert not any(seen[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        one, two, got = (dict(m.named_parameters()) for m in (*models, loaded))
        assert got.keys() == one.keys()
        for name, tensor in got.items():
            mean = (one[name].double() + 3 * two[name].double()) / 4
            assert torch.equal(tensor, mean.float() if "language_model" in name or "lm_head" in name else two[name])
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie


def test_a_disk_that_changes_what_was_written_is_noticed(
    make_model: MakeModel, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(folder: Path, layout: list[TensorInfo], tensor: Callable[[TensorInfo], torch.Tensor], size: int) -> None:
        save_file({info.name: tensor(info) for info in layout[:-1]}, folder / "model.safetensors")

    monkeypatch.setattr("vlsafe.merge.stage.write_checkpoint", lossy)
    with pytest.raises(CheckError, match="what was written differs from the accounting"):
        merge(Linear(), make_model("one", ONE), make_model("two", TWO))
