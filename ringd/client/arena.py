"""Which bytes of which segments are free: best fit, and neighbours become one again.

Numbers alone, no memory. A range is (segment, start, length).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable


class Arena:
    """The free ranges of several segments."""

    def __init__(self) -> None:
        self._by_length: list[tuple[int, int, int]] = []  # (length, segment, start), sorted
        self._starts: dict[int, dict[int, int]] = {}  # by segment: start -> length
        self._ends: dict[int, dict[int, int]] = {}  # by segment: end -> start

    def add(self, segment: int, size: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        """Take in a segment, all free but for what is *taken*, as (start, length)."""
        self._starts[segment], self._ends[segment] = {}, {}
        end = 0
        for start, length in (*sorted(taken), (size, 0)):
            if start > end:
                self._insert(segment, end, start - end)
            end = start + length

    def remove(self, segment: int) -> None:
        """Forget a segment, if it is known. What comes back of it from now on is ignored."""
        for start, length in self.ranges(segment):
            self._delete(length, segment, start)
        for table in (self._starts, self._ends):
            table.pop(segment, None)

    def ranges(self, segment: int) -> list[tuple[int, int]]:
        """Return the free ranges of a segment, as (start, length)."""
        return sorted(self._starts.get(segment, {}).items())

    def free_in(self, segment: int) -> int:
        """Return how many bytes of *segment* are free; 0 for one that was removed."""
        return sum(self._starts.get(segment, {}).values())

    def take(self, length: int) -> tuple[int, int] | None:
        """Return (segment, start) of *length* bytes, taken from the shortest range that has them.

        Of equal ones the oldest segment's first: so a call that is repeated finds the memory of
        the last one, and young segments fall idle.
        """
        place = bisect.bisect_left(self._by_length, (length, 0, 0))
        if place == len(self._by_length):
            return None
        whole, segment, start = self._by_length.pop(place)
        del self._starts[segment][start], self._ends[segment][start + whole]
        if whole > length:
            self._insert(segment, start + length, whole - length)
        return segment, start

    def give(self, segment: int, start: int, length: int) -> bool:
        """Take a range back; return whether its segment is known here."""
        starts = self._starts.get(segment)
        if starts is None:
            return False
        ends = self._ends[segment]
        after = starts.pop(start + length, None)
        if after is not None:
            del ends[start + length + after]
            self._delete(after, segment, start + length)
            length += after
        before = ends.pop(start, None)
        if before is not None:
            del starts[before]
            self._delete(start - before, segment, before)
            start, length = before, length + start - before
        self._insert(segment, start, length)
        return True

    def _insert(self, segment: int, start: int, length: int) -> None:
        self._starts[segment][start] = length
        self._ends[segment][start + length] = start
        bisect.insort(self._by_length, (length, segment, start))

    def _delete(self, length: int, segment: int, start: int) -> None:
        del self._by_length[bisect.bisect_left(self._by_length, (length, segment, start))]
