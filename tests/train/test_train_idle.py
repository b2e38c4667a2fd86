"""A rank whose share of a step has no picture makes the calls and gradients that others wait for, and learns nothing by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import train_tiny as tiny

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.model.load import load_model, load_processor
from vlsafe.train.idle import AbsentPicture


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_share_without_pictures_takes_part_in_what_sees(method: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    parent = tiny.llava(tmp_path)
    make = tiny.supervised if method == "sft" else tiny.preferences
    rows = [*make(3, 1, pictures=1.0), *make(3, 2, pictures=0.0)]
    encoder = Encoder(load_processor(parent))
    collate = Collator(encoder, encoder.encode(rows).examples, rows)
    without = [{"example": i, "pictured": True} for i in (3, 4, 5)]  # as a rank gets them where another has pictures
    batch = collate(without)
    picture = batch.pop("absent_picture")
    assert "pixel_values" not in batch
    assert "absent_picture" not in collate([{"example": i, "pictured": False} for i in (3, 4, 5)])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def gradients(absent: bool) -> dict[str, torch.Tensor | None]:
        model = load_model(parent, "cpu", train=True)
        seen = []
        model.model.multi_modal_projector.register_forward_hook(lambda *_: seen.append(True))
        hook = AbsentPicture(model)
        hook.picture = picture if absent else None
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        hook.remove()
        assert bool(seen) == absent
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    alone, together = gradients(False), gradients(True)
    projector = [name for name in alone if "multi_modal_projector" in name]
    assert projector and all(alone[name] is None for name in projector)  # what the others would wait for in vain
    for name in projector:
        grad = together[name]
        assert grad is not None and not grad.any()
    for name, grad in alone.items():
        if grad is not None:
            assert torch.equal(grad, together[name]), name
