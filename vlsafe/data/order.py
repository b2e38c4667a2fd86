"""The order in which rows are trained on: one global list of batches, fixed by the seed, whatever the number of processes.

A batch is of one modality (pictures or text), as in LLaVA's second stage, so that no step pads text to the length of pictures
and no process is without a picture where another has one. Only the batch that holds what is left of both may be mixed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def batches(pictured: Sequence[bool], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """`steps` lists of `batch_size` row numbers; `pictured[i]` says whether row i has a picture.

    Every row is seen once before any is seen again; each pass has its own order.
    """
    needed = steps * batch_size
    if not pictured:
        raise ValueError("there are no rows to put in order")
    draw = random.Random(seed)
    result: list[list[int]] = []
    carried: list[int] = []  # what an earlier pass left over, too little for a batch
    while needed > 0:
        rows = list(range(len(pictured)))
        draw.shuffle(rows)
        rows = (carried + rows)[:needed] if len(carried) + len(rows) >= needed else carried + rows
        full, carried = one_pass(rows, pictured, batch_size)
        draw.shuffle(full)
        result += full
        needed -= len(full) * batch_size
    return result


def balanced(pictured: Sequence[bool], labels: Sequence[bool], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """As `batches`, each with `batch_size` / 2 desirable rows first and as many undesirable ones after them.

    Where the rows are both sides of pairs, a batch has both sides of its pairs.
    """
    halves = []
    for wanted in (True, False):
        side = [i for i, label in enumerate(labels) if label == wanted]
        drawn = batches([pictured[i] for i in side], batch_size // 2, steps, seed)
        halves.append([[side[i] for i in half] for half in drawn])
    return [desirable + undesirable for desirable, undesirable in zip(*halves, strict=True)]


def one_pass(rows: Sequence[int], pictured: Sequence[bool], batch_size: int) -> tuple[list[list[int]], list[int]]:
    """The rows in full batches of one modality each, at most one mixed, and the fewer than `batch_size` rows that are left."""
    full: list[list[int]] = []
    left: list[int] = []
    for kind in (True, False):
        same = [i for i in rows if pictured[i] == kind]
        whole = len(same) - len(same) % batch_size
        full += [same[i : i + batch_size] for i in range(0, whole, batch_size)]
        left += same[whole:]
    if len(left) >= batch_size:
        full.append(left[:batch_size])
        left = left[batch_size:]
    return full, left
