"""Names of tensors: one canonical name whatever the layout, there and back, and nothing guessed."""

from __future__ import annotations

import pytest

from vlsafe.errors import CheckError, ConfigError
from vlsafe.model.parts import LAYOUTS, canonical_name, canonical_names, check_scope, in_scope, layout_of, part_of, stored_name

LANGUAGE = {
    "model.language_model.embed_tokens.weight": "language_model.embed",
    "model.language_model.layers.0.self_attn.q_proj.weight": "language_model.layers.0",
    "model.language_model.layers.31.post_attention_layernorm.weight": "language_model.layers.31",
    "model.language_model.norm.weight": "language_model.norm",
    "lm_head.weight": "language_model.lm_head",
}
SEEING = {
    "llava": {
        "model.vision_tower.embeddings.class_embedding": "vision_tower",
        "model.vision_tower.encoder.layers.3.mlp.fc1.bias": "vision_tower",
        "model.multi_modal_projector.linear_1.weight": "projector",
        "model.multi_modal_projector.linear_2.bias": "projector",
    },
    "qwen2.5-vl": {
        "model.visual.patch_embed.proj.weight": "vision_tower",
        "model.visual.blocks.31.attn.qkv.bias": "vision_tower",
        "model.visual.blocks.0.mlp.gate_proj.weight": "vision_tower",
        "model.visual.merger.ln_q.weight": "projector",
        "model.visual.merger.mlp.2.bias": "projector",
    },
}
CANONICAL = LANGUAGE | SEEING["llava"] | SEEING["qwen2.5-vl"]
STORED = {
    "language model": (
        "model.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
    ),
    "llava, transformers 5 in memory": (
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layers.3.mlp.fc1.bias",
        "model.multi_modal_projector.linear_1.weight",
        "lm_head.weight",
    ),
    "llava, transformers 5 on disk": (
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "vision_tower.encoder.layers.3.mlp.fc1.bias",
        "multi_modal_projector.linear_2.bias",
    ),
    "llava, transformers 4": (
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias",
        "multi_modal_projector.linear_1.weight",
    ),
    "llava, transformers 5.0 to 5.5 in memory": (
        "model.language_model.norm.weight",
        "model.vision_tower.vision_model.embeddings.class_embedding",
    ),
    "llava, liuhaotian": (
        "model.layers.31.post_attention_layernorm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias",
    ),
    "qwen2.5-vl, transformers 5 in memory": (
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.visual.blocks.31.attn.qkv.bias",
        "model.visual.merger.ln_q.weight",
        "lm_head.weight",
    ),
    "qwen2.5-vl, transformers 4": (
        "model.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "visual.patch_embed.proj.weight",
        "visual.merger.mlp.2.bias",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_goes_there_and_back(layout) -> None:
    held = [*LANGUAGE, *SEEING.get(layout.name.split(",")[0], ())]
    stored = [stored_name(name, layout) for name in held]
    assert [canonical_name(name) for name in stored] == held
    assert [part_of(name) for name in stored] == [CANONICAL[name] for name in held]
    assert layout_of(stored) is layout
    assert canonical_names(stored) == dict(zip(held, stored, strict=True))


@pytest.mark.parametrize("name", STORED)
def test_names_as_they_are_found_on_disk(name: str) -> None:
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    for stored in STORED[name]:
        assert canonical_name(stored) in CANONICAL
        assert stored_name(canonical_name(stored), layout) == stored
    assert layout_of(STORED[name]) is layout


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.model.layers.0.mlp.up_proj.weight",  # what ZeRO-3 once wrote
        "language_model.model.vision_tower.embeddings.class_embedding",
        "model.language_model.model.norm.weight",
        "model.model.norm.weight",
        "model.vision_tower.vision_tower.embeddings.class_embedding",
        "model.visual.visual.merger.ln_q.weight",
        "visual.model.blocks.0.norm1.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.x.mlp.up_proj.weight",
        "transformer.h.0.attn.c_attn.weight",
        "lm_heads.weight",
        "",
    ],
)
def test_an_unknown_name_is_named(name: str) -> None:
    for ask in (canonical_name, part_of):
        with pytest.raises(CheckError, match="no known layout has the tensor names"):
            ask(name)
    with pytest.raises(CheckError, match=r"here: no known layout .* and 2 more"):
        canonical_names([f"{name}.{i}" for i in range(7)] + ["lm_head.weight"], "here")


def test_a_language_model_has_no_place_for_a_tower() -> None:
    with pytest.raises(CheckError, match="the layout 'language model' has no such tensor"):
        stored_name("model.vision_tower.embeddings.class_embedding", LAYOUTS[0])


def test_mixed_layouts_are_no_layout() -> None:
    with pytest.raises(CheckError, match="mixes layouts"):
        layout_of(["model.norm.weight", "language_model.lm_head.weight"])


def test_scopes_take_in_parts() -> None:
    parts = set(CANONICAL.values())
    for scope, expected in {
        "all": parts,
        "language_model": {p for p in parts if p.startswith("language_model")},
        "layers": {"language_model.layers.0", "language_model.layers.31"},
        "layers.31": {"language_model.layers.31"},
        "layers.0-30": {"language_model.layers.0"},
        "layers.3": set(),
        "embed": {"language_model.embed"},
        "norm": {"language_model.norm"},
        ("lm_head", "projector"): {"language_model.lm_head", "projector"},
        "vision_tower": {"vision_tower"},
    }.items():
        check_scope(scope, "merge.scope")
        assert {part for part in parts if in_scope(part, scope)} == expected


@pytest.mark.parametrize(
    "scope", ["", "layer", "layers.", "layers.1-", "layers.a", "layers.2-1", "language_model.layers.1", ()]
)
def test_impossible_scopes_are_refused(scope) -> None:
    with pytest.raises(ConfigError, match=r"merge\.scope="):
        check_scope(scope, "merge.scope")
