"""The rows of `train_tiny` with pictures of several sizes, which Qwen2.5-VL keeps, and a model of that family to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import train_tiny as tiny

from vlsafe.stand_in.qwen import write_lvlm

SIZES = ((28, 28), (56, 84), (140, 30), (60, 60))  # 1, 6, 5 and 4 image tokens


def qwen(folder: Path, **settings: Any) -> Path:
    return write_lvlm(folder, dtype="float32", **settings)


def resized(rows: list[Any]) -> list[Any]:
    """The same rows, each picture in another of the sizes than the one before it."""
    sizes = [SIZES[i % len(SIZES)] for i in range(len(rows))]
    return [{**row, "images": [p.resize(size) for p in row["images"]]} for row, size in zip(rows, sizes, strict=True)]


def supervised(n: int, seed: int, pictures: float = 0.5) -> list[Any]:
    return resized(tiny.supervised(n, seed, pictures, words=(1, 4)))


def preferences(n: int, seed: int, pictures: float = 0.5) -> list[Any]:
    return resized(tiny.preferences(n, seed, pictures))
