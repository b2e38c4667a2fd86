"""Small model folders to merge: a LLaVA's tensors with made-up values, and a stage context over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlsafe.merge.base import MergeMethod
from vlsafe.merge.stage import run
from vlsafe.stage import StageContext

VOCABULARY, WIDTH, LAYERS = 12, 8, 3


def llava_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.vision_tower.embeddings.class_embedding": (5,),
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight": (7, 5),
        "model.multi_modal_projector.linear_1.weight": (WIDTH, 5),
        "model.multi_modal_projector.linear_1.bias": (WIDTH,),
        "model.language_model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.language_model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for i in range(LAYERS):
        shapes[f"model.language_model.layers.{i}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"model.language_model.layers.{i}.mlp.up_proj.weight"] = (16, WIDTH)
        shapes[f"model.language_model.layers.{i}.input_layernorm.weight"] = (WIDTH,)
    return shapes


def llava_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    own = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=own).to(dtype) for name, shape in llava_shapes().items()}


MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """(name, tensors or a seed, config) -> a model folder."""

    def make(name: str, tensors: Mapping[str, torch.Tensor] | int, config: Mapping[str, Any] | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        save_file(
            dict(llava_tensors(tensors) if isinstance(tensors, int) else tensors),
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text(
            json.dumps({"dtype": "float32", "text_config": {"dtype": "float32"}} | dict(config or {}))
        )
        (folder / "tokenizer.json").write_text(json.dumps({"of": name}))
        (folder / "chat_template.jinja").write_text(f"template of {name}")
        (folder / "train_log.jsonl").write_text("not part of a model")
        return folder

    return make


class Merged:
    def __init__(self, out: Path, context: StageContext) -> None:
        self.out, self.context, self.facts = out, context, context.facts
        self.report = json.loads((out / "merge_report.json").read_text())

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {k: v for file in sorted(self.out.glob("*.safetensors")) for k, v in load_file(file).items()}

    def entry(self, name: str) -> dict[str, Any]:
        return next(e for e in self.report["tensors"] if e["name"] == name)


@pytest.fixture
def merge(tmp_path: Path) -> Callable[..., Merged]:
    """(method, models, base, carrier, further fields of the context) -> what the stage made of them."""

    def run_stage(
        method: MergeMethod, *models: Path, base: Path | None = None, carrier: Path | None = None, **more: Any
    ) -> Merged:
        parents = {f"model_{i}": folder for i, folder in enumerate(models)} | {"carrier": carrier or models[-1]}
        out = tmp_path / f"merged-{len(list(tmp_path.glob('merged-*')))}"
        out.mkdir()
        context = StageContext(out, tmp_path / "work", parents | ({"base": base} if base else {}), **more)
        run(method, context)
        return Merged(out, context)

    return run_stage
