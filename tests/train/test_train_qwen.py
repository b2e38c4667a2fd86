"""A second family trains as the first does: pictures keep their sizes, so a batch holds several numbers of image tokens, and
positions follow the pictures' rows and columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import train_qwen
from test_train_steps import PARTS, bare_loop, close, train

from vlsafe.data.collate import Collator
from vlsafe.data.encode import Encoder
from vlsafe.data.mix import Unpaired
from vlsafe.errors import CheckError
from vlsafe.model.families import MODEL_INPUTS
from vlsafe.model.load import load_model, load_processor
from vlsafe.stage import Execution, StageContext
from vlsafe.train.engine import Phase, run_phases
from vlsafe.train.lora import Lora
from vlsafe.train.optimization import Optimization
from vlsafe.train.parts import part_of

SETTING = Optimization(steps=3, batch_size=4, learning_rate=2e-3, schedule="constant", weight_decay=0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_qwen.qwen(tmp_path_factory.mktemp("qwen"))


def test_supervised_training_equals_a_bare_loop(parent: Path, tmp_path: Path) -> None:
    rows = train_qwen.supervised(16, seed=1)
    model, ctx = train(parent, tmp_path, [Phase("one", "sft", lambda: rows, SETTING, PARTS, 3)])
    close(model, bare_loop(parent, rows, lambda m, batch: m(**batch).loss, 3, setting=SETTING))
    facts = ctx.facts["phases"]["one"]
    assert facts["image_features"] == 6
    assert facts["rows_with_pictures"] == sum(bool(row["images"]) for row in rows)
    assert all(count > 0 for count in facts["supervised_tokens_by_source"].values())
