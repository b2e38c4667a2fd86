"""A joined model goes the whole way: assembled, adapted on pictures and text, merged back into what it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from tests.model.conftest import LLAMA3, SIGLIP, messages
from vlsafe.data.rows import TrainingData
from vlsafe.merge.methods.linear import Linear
from vlsafe.merge.stage import run as merge
from vlsafe.model.assembled import Assembled
from vlsafe.model.load import load_model
from vlsafe.model.weights import open_checkpoint
from vlsafe.sources import Source
from vlsafe.stage import StageContext
from vlsafe.train.adaptation import Llava
from vlsafe.train.optimization import Optimization


class Cubes(TrainingData):
    """Rows of a coloured picture, every other instruction without one."""

    def supervised(self, purpose: Any, n: int, seed: int) -> Sequence[Any]:
        return [self.row(purpose, i, purpose == "projector" or i % 2 == 0) for i in range(n)]

    def row(self, purpose: str, i: int, shown: bool) -> dict[str, Any]:
        pictures = [Image.new("RGB", (60, 40), (20 * i % 256, 0, 0))] if shown else []
        talk = messages(f"What is number {i}?", "A cube.", picture=shown)
        return {"source": purpose, "prompt": talk[:1], "completion": talk[1:], "images": pictures}


def test_an_assembled_model_is_adapted_and_merged(hub: Callable[[str], Source], stage: Callable[..., StageContext]) -> None:
    base = stage()
    Assembled(hub(LLAMA3), hub(SIGLIP), dtype="fp32").build(base)
    adapted = stage(model=base.out)
    two = Optimization(steps=2, batch_size=4, learning_rate=1e-3)
    Llava(projector=two, instruct=two).run(Cubes(), adapted)
    facts = adapted.facts["phases"]["instruct"]
    assert facts["rows_with_pictures"] == 4
    assert facts["image_features"] == 9
    assert facts["end_token"] == "template"  # <|eot_id|>, which is the tokenizer's end
    assert adapted.facts["template_hash"] == base.facts["template_hash"]
    merged = stage(model_0=base.out, model_1=adapted.out, carrier=adapted.out)
    merge(Linear(weights=(0.5, 0.5)), merged)
    one, other, both = (open_checkpoint(folder) for folder in (base.out, adapted.out, merged.out))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one.read(name), other.read(name))
    assert torch.allclose(both.read(name), (one.read(name) + other.read(name)) / 2, atol=1e-6)
    load_model(merged.out, "cpu")
