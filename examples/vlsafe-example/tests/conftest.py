"""A pruned model that trained for a few steps: enough to see what a stage does, not what it is good for."""

from pathlib import Path

import pytest
import torch
from vlsafe_example.pruned import Pruned

from vlsafe.model.components import TowerTraining
from vlsafe.stage import Execution, StageContext
from vlsafe.train.optimization import Optimization

FEW = Optimization(steps=2, batch_size=8, learning_rate=1e-3)


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pruned")
    small = {"width": 16, "layers": 2, "heads": 2, "feed_forward": 32, "tower_width": 16, "tower_layers": 1, "tower_heads": 2}
    model = Pruned(pretraining=FEW, alignment=FEW, tower=TowerTraining(2, 8, 1e-3), share=0.25, **small)
    where = Execution(device="cpu")
    model.build_unaligned(StageContext(folder / "unaligned", folder / "unaligned-work", execution=where))
    model.build(StageContext(folder / "out", folder / "work", {"model": folder / "unaligned"}, where))
    return folder / "out"
