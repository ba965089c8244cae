"""Arrays of several ranks of a machine, read and written as if they were one.

What a machine hands over for all its ranks, or is given for them, is a line of *segments*. A
segment is a part of one array, or the same part of several, which are *alike*: inputs that are to
be reduced with each other, or results that all have the same values.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ringd.collective.reduction import Array


@dataclass(frozen=True, slots=True)
class Segment:
    """The elements from *start* to *stop* of each of *arrays*, which are given by number."""

    start: int
    stop: int
    arrays: tuple[int, ...]


def joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Return *segments* without empty ones, and with those as one that go on from each other."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if last and (last.stop, last.arrays) == (segment.start, segment.arrays):
            found[-1] = Segment(last.start, segment.stop, segment.arrays)
        elif segment.start < segment.stop:
            found.append(segment)
    return tuple(found)


class Spread:
    """Segments of arrays as one line of elements.

    Args:
        arrays: 1-d, of one dtype.
        segments: none of them empty; by default all elements of all arrays, which are alike.
    """

    __slots__ = ("_starts", "alike", "arrays", "parts", "whole")

    def __init__(self, arrays: Sequence[Array], segments: Sequence[Segment] | None = None) -> None:
        self.arrays = arrays
        self.parts: list[list[Array]]
        """By segment: its part of each of its arrays."""
        if segments is None:
            self.parts = [list(arrays)]
        elif segments:
            self.parts = [[arrays[i][s.start : s.stop] for i in s.arrays] for s in segments]
        else:
            self.parts = [[arrays[0][:0]]]
        first = self.parts[0]
        self.whole: Array | None = first[0] if len(self.parts) == 1 else None
        """The first array of the only segment; None if there are several segments."""
        self.alike = len(first)
        """The number of arrays that have the same elements."""
        self._starts = [0, len(first[0])]
        if self.whole is None:
            self._starts = list(accumulate((len(part[0]) for part in self.parts), initial=0))

    def __len__(self) -> int:
        """Return the number of elements."""
        return self._starts[-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all arrays."""
        return self.parts[0][0].dtype

    def cut(self, start: int, stop: int) -> list[tuple[slice, list[Array]]]:
        """Return the elements from *start* to *stop*, if any, segment by segment.

        Each as where it stands in that range, and as what it is in each array.
        """
        parts, starts = self.parts, self._starts
        if start == stop:
            return []
        if len(parts) == 1:
            return [(slice(0, stop - start), [array[start:stop] for array in parts[0]])]
        found = []
        number, at = bisect_right(starts, start) - 1, start
        while at < stop:
            first, end = starts[number], min(stop, starts[number + 1])
            arrays = [array[at - first : end - first] for array in parts[number]]
            found.append((slice(at - start, end - start), arrays))
            number, at = number + 1, end
        return found
