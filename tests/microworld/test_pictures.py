"""Pictures show what they say they show."""

from __future__ import annotations

import numpy as np

from vlsafe.microworld.pictures import PATCH, SIZE, Cell, draw, pixels
from vlsafe.microworld.world import World

BARE = World(noise=0.0)


def test_a_picture_depends_on_object_colour_place_and_noise() -> None:
    world = World()
    first = pixels(world, {4: Cell("vase", "red")}, 0.5)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, pixels(world, {4: Cell("vase", "red")}, 0.5))
    for other, noise in (
        ({4: Cell("lamp", "red")}, 0.5),
        ({4: Cell("vase", "blue")}, 0.5),
        ({5: Cell("vase", "red")}, 0.5),
        ({4: Cell("vase")}, 0.5),
        ({4: Cell("vase", "red")}, 0.6),
    ):
        assert not np.array_equal(first, pixels(world, other, noise))


def test_only_the_patch_of_a_cell_changes() -> None:
    empty, one = pixels(BARE, {}, 0.0).astype(int), pixels(BARE, {5: Cell("vase", "green")}, 0.0).astype(int)
    rows, columns = np.nonzero((empty != one).any(axis=2))
    assert set(rows // PATCH) == {1}
    assert set(columns // PATCH) == {2}


def test_every_word_and_object_has_a_glyph_of_its_own() -> None:
    from vlsafe.microworld.world import COLOURS, NOUNS, vocabulary

    cells = [Cell(word) for word in vocabulary()] + [Cell(noun, colour) for noun in NOUNS for colour in COLOURS]
    assert len({pixels(BARE, {0: cell}, 0.0).tobytes() for cell in cells}) == len(cells)


def test_draw_gives_the_pixels_as_a_picture() -> None:
    cells = {0: Cell("vase", "red"), 8: Cell("how")}
    picture = draw(World(), cells, 0.1)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), pixels(World(), cells, 0.1))
