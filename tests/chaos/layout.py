"""On which members of the ring the programs of a group are: on all or on a part, one or several."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each rank of a group is.

    Args:
        places: by rank, its member as a number of the ring's order.
    """

    places: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.places)

    @property
    def members(self) -> list[int]:
        """Those that take part, in the ring's order."""
        return sorted(set(self.places))

    @property
    def orders(self) -> tuple[tuple[int, ...], ...]:
        """All ranks, member by member, and on each by rank; for each member, beginning there."""
        ranks = range(self.size)
        machines = [[r for r in ranks if self.places[r] == member] for member in self.members]
        turns = (machines[turn:] + machines[:turn] for turn in range(len(machines)))
        return tuple(tuple(chain.from_iterable(turn)) for turn in turns)

    def local(self, rank: int) -> tuple[int, int]:
        """Return which one of its member's programs *rank* is, and how many there are."""
        place = self.places[rank]
        return self.places[:rank].count(place), self.places.count(place)


def everywhere(size: int) -> Layout:
    """Return that of one program on each member."""
    return Layout(tuple(range(size)))


def doubled(size: int) -> Layout:
    """Return that of two programs on the second member, one on each of the others."""
    return Layout((0, 1, *range(1, size)))


def every_other(size: int) -> Layout:
    """Return that of one program on every other member; on both where there are two."""
    return Layout(tuple(range(0, size, 2 if size > 2 else 1)))
