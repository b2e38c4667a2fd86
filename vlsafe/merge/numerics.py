"""Arithmetic on whole tensors in small pieces: float64 inside, little memory outside, the same bits whatever the thread count.

A piece fits the processor's cache, so that a formula of twenty operations costs one pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 16  # elements; 0.5 MB in float64. Fastest from 2^15 to 2^17 with 1 MB of second-level cache


def plain(weights: Sequence[float]) -> list[float]:
    """Equal weights as ones, so that weighted sums of float32 values are exact in float64 and forget their order."""
    return [1.0] * len(weights) if len(set(weights)) == 1 else list(weights)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching pieces of tensors of one shape, flattened, as fresh float64 copies that may be overwritten."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), PIECE):
        yield tuple(one[start : start + PIECE].to(torch.float64, copy=True) for one in flat)


def all_finite(tensor: Tensor) -> bool:
    """True unless a value is NaN or infinite; integers always are finite."""
    if not tensor.is_floating_point():
        return True
    # A sum is thirty times as fast as a test of each value; where large values overflow it, each is tested after all.
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def elementwise(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function` of matching float64 pieces of tensors of one shape, put together in float32 (float64 where an input is)."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    out = torch.empty(tensors[0].shape, dtype=dtype)
    flat, start = out.view(-1), 0
    for chunk in pieces(*tensors):
        end = start + chunk[0].numel()
        flat[start:end] = function(*chunk)
        start = end
    return out


def cuts(stream: Callable[[], Iterable[Sequence[Tensor]]], columns: int, density: float) -> list[float]:
    """For each column of a stream of rows of non-negative float32 pieces, the least value among its largest `density` share.

    That is the k-th largest of n values, exactly, with k = round(density · n) but at least 1; infinity for a density of 0.
    Values equal to the cut are not told apart: whoever keeps what is at or above it keeps all of them, so at least k.
    `stream()` is read twice: a histogram of the upper 16 bits finds the bucket (the bits of non-negative floats are in the
    order of the floats), one of the lower 16 bits the value in it.
    """
    if density == 0:
        return [float("inf")] * columns
    coarse = [torch.zeros(1 << 15, dtype=torch.int64) for _ in range(columns)]
    for row in stream():
        for counts, piece in zip(coarse, row, strict=True):
            counts += torch.bincount(piece.view(torch.int32) >> 16, minlength=1 << 15)
    ranks = [max(1, round(density * int(counts.sum()))) for counts in coarse]
    buckets, left = zip(*[_rank_in(counts, rank) for counts, rank in zip(coarse, ranks, strict=True)], strict=True)
    fine = [torch.zeros(1 << 16, dtype=torch.int64) for _ in coarse]
    for row in stream():
        for counts, piece, bucket in zip(fine, row, buckets, strict=True):
            bits = piece.view(torch.int32)
            counts += torch.bincount(bits[(bits >> 16) == bucket] & 0xFFFF, minlength=1 << 16)
    values = [bucket << 16 | _rank_in(counts, rank)[0] for counts, rank, bucket in zip(fine, left, buckets, strict=True)]
    return [float(torch.tensor(value, dtype=torch.int32).view(torch.float32)) for value in values]


def _rank_in(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the `rank`-th largest of a histogram's values, and its rank among that bucket's."""
    above = counts.flip(0).cumsum(0)
    if not 1 <= rank <= int(above[-1]):
        raise ValueError(f"rank {rank} of {int(above[-1])} values")
    place = int(torch.searchsorted(above, rank))
    before = int(above[place - 1]) if place else 0
    return counts.numel() - 1 - place, rank - before


def weighted_sum(chunks: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """Σ c_i x_i of pieces, which it overwrites. What has the coefficient zero is left out: 1 · x + 0 · y is x, bit for bit."""
    used = [(coefficient, chunk) for coefficient, chunk in zip(coefficients, chunks, strict=True) if coefficient]
    total = used[0][1].mul_(used[0][0])
    for coefficient, chunk in used[1:]:
        total.add_(chunk.mul_(coefficient))
    return total


def total(piece: Tensor) -> float:
    """The sum of a float64 piece, the same whatever the thread count: torch adds up to 2^15 values in one thread."""
    return sum(float(block.sum()) for block in piece.split(1 << 14))


def products(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """(x·x, x·y, y·y) in float64, over whole tensors of one shape; with the tensors exchanged the same numbers, exchanged."""
    sums = [0.0, 0.0, 0.0]
    for x, y in pieces(one, other):
        for place, product in enumerate((x * x, x * y, y * y)):
            sums[place] += total(product)
    return sums[0], sums[1], sums[2]


def gram(*tensors: Tensor) -> list[list[float]]:
    """Inner products, in float64, of the first tensor and of each other's difference from it: row and column 0 are the first's.

    With r the first and d_i the others minus r: [[r·r, r·d_1, …], [d_1·r, d_1·d_1, …], …]. Not finite where an input isn't.
    """
    total = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for chunk in pieces(*tensors):
        rows = torch.stack(chunk)
        rows[1:] -= rows[0]
        total += rows @ rows.T
    return [[float(value) for value in row] for row in total]
