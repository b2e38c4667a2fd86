"""The vision tower: a small CLIP vision model that learns what each patch shows, and is then frozen, as CLIP is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from vlsafe.microworld.pictures import CELLS, PATCH, SIZE, Cell, Cells, pixels
from vlsafe.microworld.skills import Draws
from vlsafe.microworld.world import COLOURS, World, lexicon, spoken

_STREAM = 3


def tower_config(width: int, layers: int, heads: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=width,
    )


def train_tower(
    world: World,
    config: Any,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    report: Callable[[int, float], None],
) -> Any:
    """A `CLIPVisionModel` trained to tell for each of the patches its object or word and its colour, each by a linear map.

    `report` gets (step, loss). The features that are trained are those that the projector reads: the last hidden state before
    the final norm.
    """
    import torch
    from torch.nn import functional
    from transformers import CLIPVisionModel

    shown = [Cell(""), *(Cell(noun, "any") for noun in lexicon(world).nouns), *(Cell(word) for word in spoken(world))]
    labels = {cell: i for i, cell in enumerate(shown)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPVisionModel(config)
        what = torch.nn.Linear(config.hidden_size, len(labels))
        colour = torch.nn.Linear(config.hidden_size, len(COLOURS))
    parameters = [*tower.parameters(), *what.parameters(), *colour.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    tower.train()
    losses: list[float] = []
    for step in range(steps):
        warm = min(1.0, (step + 1) / 20)
        optimizer.param_groups[0]["lr"] = learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        pictures, what_is, colours = _batch(world, labels, batch_size, seed, step)
        hidden = tower(pixel_values=pictures).last_hidden_state[:, 1:]
        seen = colours >= 0
        loss = functional.cross_entropy(what(hidden).flatten(0, 1), what_is.flatten())
        loss = loss + functional.cross_entropy(colour(hidden)[seen], colours[seen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        report(step + 1, losses[-1])
    return tower.eval(), losses


def _batch(world: World, labels: dict[Cell, int], batch_size: int, seed: int, step: int) -> tuple[Any, Any, Any]:
    """Pictures (batch, 3, 24, 24) in [-1, 1], labels and colours (batch, 9); no colour is -1. Half of the patches are words,
    a third objects, the rest empty."""
    import numpy as np
    import torch

    words, nouns = spoken(world), lexicon(world).nouns
    pictures = np.empty((batch_size, SIZE, SIZE, 3), dtype=np.uint8)
    shown = np.zeros((batch_size, CELLS), dtype=np.int64)
    colours = np.full((batch_size, CELLS), -1, dtype=np.int64)
    rng = np.random.default_rng([world.seed, _STREAM, seed, step])
    kinds, picks, tints = (
        rng.random((batch_size, CELLS)),
        rng.random((batch_size, CELLS)),
        rng.integers(0, len(COLOURS), (batch_size, CELLS)),
    )
    for row in range(batch_size):
        cells: Cells = {}
        for place in range(CELLS):
            kind, pick = kinds[row, place], picks[row, place]
            if kind < 0.5:
                cells[place] = Cell(words[int(pick * len(words))])
                shown[row, place] = labels[cells[place]]
            elif kind < 0.85:
                noun = nouns[int(pick * len(nouns))]
                cells[place] = Cell(noun, COLOURS[tints[row, place]])
                shown[row, place], colours[row, place] = labels[Cell(noun, "any")], tints[row, place]
        pictures[row] = pixels(world, cells, Draws(world, _STREAM, seed, step * batch_size + row).share())
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return scaled, torch.from_numpy(shown), torch.from_numpy(colours)
