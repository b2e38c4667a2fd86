"""The pictures: 24 × 24 pixels, a 3 × 3 grid of patches. An object is a coloured glyph on black, a word a black one on white.

A picture is described by its `Cells`, which a language model can also read as text; drawing adds the glyphs and the noise.
Colours are never asked for: they, the place and the noise are what a tower has to see past.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from vlsafe.microworld.world import COLOURS, NOUNS, World, vocabulary

if TYPE_CHECKING:
    import numpy as np

GRID = 3
PATCH = 8
SIZE = GRID * PATCH
CELLS = GRID * GRID
RGB = {
    "red": (230, 50, 50),
    "green": (50, 200, 70),
    "blue": (70, 90, 240),
    "yellow": (225, 215, 50),
    "pink": (230, 90, 210),
    "white": (235, 235, 235),
}


class Cell(NamedTuple):
    """What one patch shows: an object in a colour, or a word (an empty colour)."""

    word: str
    colour: str = ""


Cells = dict[int, Cell]  # by place in reading order, 0 to 8; the rest is empty


@functools.lru_cache(maxsize=4)
def _patches(world: World) -> dict[Cell, np.ndarray[Any, Any]]:
    """For each cell that can be drawn, its patch (8, 8, 3) in float32; object glyphs are mirror-symmetric, words' are not."""
    import numpy as np

    rng = np.random.default_rng([world.seed, 0x676C7970])
    patches: dict[Cell, np.ndarray[Any, Any]] = {}
    for noun in NOUNS:
        half = rng.integers(0, 2, (PATCH, PATCH // 2))
        glyph = np.concatenate([half, half[:, ::-1]], axis=1)[..., None]
        for colour in COLOURS:
            patches[Cell(noun, colour)] = (glyph * np.array(RGB[colour])).astype(np.float32)
    for word in vocabulary():
        glyph = rng.integers(0, 2, (PATCH, PATCH))[..., None]
        patches[Cell(word)] = np.broadcast_to(235.0 - 205.0 * glyph, (PATCH, PATCH, 3)).astype(np.float32)
    return patches


@functools.lru_cache(maxsize=4)
def _noise(world: World) -> np.ndarray[Any, Any]:
    """2^18 normal values: each picture takes its noise from a place of its own, which costs no time."""
    import numpy as np

    rng = np.random.default_rng([world.seed, 0x6E6F6973])
    return (rng.standard_normal(1 << 18) * world.noise).astype(np.float32)


def pixels(world: World, cells: Cells, noise_at: float) -> np.ndarray[Any, Any]:
    """The picture as (24, 24, 3) uint8; `noise_at` in [0, 1) chooses the noise."""
    import numpy as np

    patches, bank = _patches(world), _noise(world)
    start = int(noise_at * (len(bank) - SIZE * SIZE * 3))
    canvas = bank[start : start + SIZE * SIZE * 3].reshape(SIZE, SIZE, 3) + 12.0
    for place, cell in cells.items():
        row, column = divmod(place, GRID)
        canvas[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += patches[cell]
    return np.clip(canvas, 0.0, 255.0).astype(np.uint8)


def draw(world: World, cells: Cells, noise_at: float) -> Any:
    """The same as a `PIL.Image.Image`."""
    from PIL import Image

    return Image.fromarray(pixels(world, cells, noise_at))
