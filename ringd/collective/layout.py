"""Which ranks of a group are on which machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Layout:
    """The machines that take part in a group's calls, as one of them sees it.

    Invariant: every rank is on one machine, every machine has one at least.
    """

    machines: tuple[tuple[int, ...], ...]
    """The ranks of each machine, rising; the machines in ring order."""
    position: int
    """This machine's, among those."""

    def __post_init__(self) -> None:
        if not 0 <= self.position < len(self.machines):
            raise ValueError(f"machine {self.position} is not one of {len(self.machines)}")
        if sorted(self.order) != list(range(self.size)) or not all(self.machines):
            raise ValueError(f"{self.machines} do not have every rank once")

    @classmethod
    def of(cls, places: Sequence[int], member: int) -> Layout:
        """Return the layout of a group as *member* of the ring sees it.

        Args:
            places: by rank, the member that it is on.
            member: has one of the ranks at least.

        Raises:
            ValueError: it has none.
        """
        ranks: dict[int, list[int]] = {place: [] for place in sorted(places)}
        for rank, place in enumerate(places):
            ranks[place].append(rank)
        if member not in ranks:
            others = ", ".join(map(str, ranks))
            raise ValueError(f"no rank is on member {member}: the ranks are on {others}")
        return cls(tuple(map(tuple, ranks.values())), list(ranks).index(member))

    @property
    def size(self) -> int:
        """The number of ranks."""
        return sum(map(len, self.machines))

    @property
    def local(self) -> tuple[int, ...]:
        """The ranks on this machine."""
        return self.machines[self.position]

    @property
    def order(self) -> tuple[int, ...]:
        """All ranks, in the order in which sums are taken: machine by machine."""
        return tuple(chain.from_iterable(self.machines))

    def machine_of(self, rank: int) -> int:
        """Return the position of the machine that *rank* is on."""
        return next(at for at, ranks in enumerate(self.machines) if rank in ranks)
