"""What the members hand over, and what must come of it: sums exact in every format. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BLOCK = 2048  # periods that are computed at once


@dataclass(frozen=True, slots=True)
class Pattern:
    """Small whole numbers, over and over; a call adds its offset, and rank r one that is r more."""

    period: int
    """Elements after which they repeat: a prime, so that no chunk falls in step with them."""
    offsets: int
    """How many there are."""

    def offset(self, number: int) -> int:
        """Return by how much the inputs of call *number* are more than those of call 0."""
        return number % self.offsets

    def fill(self, array: Array, offset: int) -> None:
        """Write the input with *offset* into *array*, which has one dimension."""
        for start, block in self._blocks(len(array), array.dtype):
            part = array[start : start + len(block)]
            np.add(block, array.dtype.type(offset), out=part)

    def count_wrong_sums(self, result: Array, size: int, offset: int) -> int:
        """Return how many elements are not the sum of the inputs of *size* ranks.

        *offset*: rank 0's.
        """
        total = size * offset + size * (size - 1) // 2
        kind = result.dtype.type
        wrong = 0
        for start, block in self._blocks(len(result), result.dtype):
            part = result[start : start + len(block)]
            wrong += int(np.count_nonzero(part != block * kind(size) + kind(total)))
        return wrong

    def _blocks(self, count: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, Array]]:
        block = np.resize(np.arange(self.period).astype(dtype), min(count, self.period * _BLOCK))
        for start in range(0, count, max(1, len(block))):
            yield start, block[: count - start]


WIDE = Pattern(61, 4096)
NARROW = Pattern(7, 6)
"""For 16-bit floats and wires."""
MOST_RANKS = 8
"""Whose sums of ``NARROW`` are at most 125: so far every wire has whole numbers exactly."""


def pattern_of(dtype: str, wire: str | None) -> Pattern:
    """Return what calls with tensors of *dtype* hand over that travel as *wire* says."""
    return WIDE if dtype == "float32" and wire is None else NARROW


def expected(kind: str, count: int, rank: int, size: int, offset: int) -> Array:
    """Return the result of a call that is none of all_reduce, in float32.

    Args:
        kind: What is called; ``pass_on``: everybody has the input of its left neighbour.
        count: Elements that each rank hands over.
        rank: Whose result.
        size: How many ranks there are.
        offset: Of rank 0's input; rank r's is r more.
    """
    inputs = [np.empty(count, np.float32) for _ in range(size)]
    for other, array in enumerate(inputs):
        WIDE.fill(array, offset + other)
    part = slice(rank * (count // size), (rank + 1) * (count // size))
    if kind == "broadcast":
        return inputs[0]
    if kind in {"ping_pong", "pass_on"}:
        return inputs[rank - 1]
    if kind == "all_gather":
        return np.concatenate(inputs)
    if kind == "reduce_scatter":
        total: Array = np.sum([array[part] for array in inputs], axis=0)
        return total
    if kind == "all_to_all":
        return np.concatenate([array[part] for array in inputs])
    raise ValueError(f"no expected result of {kind} is known")
