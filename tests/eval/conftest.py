from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.eval import tiny
from vlsafe.eval.base import Axis, Benchmark, Item


@dataclass(frozen=True)
class Words(Benchmark):
    """Prompts of two to nine words, every second one with a picture if `pictures`."""

    pictures: bool = True

    axis: ClassVar[Axis] = "text_safety"
    needs_image: ClassVar[bool] = False
    component_name: ClassVar[str] = "words"

    def items(self, limit: int | None) -> list[Item]:
        return [self._item(i) for i in range(24)][:limit]

    def _item(self, i: int) -> Item:
        prompt = " ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(2 + i % 8))
        image = (lambda: picture(i)) if self.pictures and i % 2 else None
        return Item(f"item-{i:02d}", "words", prompt, "refuse", "w1 w2", image)


def picture(seed: int) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make
