"""A communicator as one of its ranks sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class View:
    """The ranks that make calls together, where they are, and which of them this one is.

    Invariant: *rank* is one of them. Ranks are programs; each is on a member of the ring, which
    may have several, or none.

    Args:
        names: by rank, that of its member.
        rank: this one's.
        places: by rank, its member, as a number of the ring's order; by default each rank is on
            the member of its own number.
        ring_size: members of the ring; by default as many as there are ranks.
        side: the neighbour to whom this one's messages and data go.
        labels: by rank, what errors call it; by default what the names and places give.
    """

    names: tuple[str, ...]
    rank: int
    places: tuple[int, ...] = ()
    ring_size: int = 0
    side: Side = "right"
    labels: tuple[str, ...] = ()
    size: int = field(init=False)
    """The number of ranks."""
    here: tuple[int, ...] = field(init=False)
    """The ranks on this one's member."""
    apart: bool = field(init=False)
    """Whether each rank is on a member of its own."""
    next: int = field(init=False)
    """The member with ranks that follows, on that side; the own one if all are here."""
    order: tuple[int, ...] = field(init=False)
    """All ranks, member by member in the ring's order; empty where that is theirs."""
    until: int = field(init=False)
    """The last one of these, at which a message to all ends."""

    def __post_init__(self) -> None:
        names = self.names
        if not 0 <= self.rank < len(names):
            raise ValueError(f"rank {self.rank} is not one of {len(names)}")
        places = self.places or tuple(range(len(names)))
        ring_size = self.ring_size or len(names)
        if len(places) != len(names) or not all(0 <= place < ring_size for place in places):
            raise ValueError(f"{len(names)} ranks cannot be on members {places} of {ring_size}")
        own = places[self.rank]
        away = 1 if self.side == "right" else -1
        order = tuple(sorted(range(len(names)), key=lambda rank: (places[rank], rank)))
        others = sorted({(place - own) * away % ring_size for place in places})
        for name, value in (
            ("places", places),
            ("ring_size", ring_size),
            ("size", len(names)),
            ("here", tuple(rank for rank, place in enumerate(places) if place == own)),
            ("apart", len({*places}) == len(places)),
            ("order", () if order == tuple(range(len(names))) else order),
            ("next", (own + away * others[min(1, len(others) - 1)]) % ring_size),
            ("until", (own + away * others[-1]) % ring_size),
        ):
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """The name of this rank's member."""
        return self.names[self.rank]

    @property
    def place(self) -> int:
        """This rank's member."""
        return self.places[self.rank]

    @property
    def next_here(self) -> int | None:
        """The rank that follows on this member; None if this one is the last."""
        return next((rank for rank in self.here if rank > self.rank), None)

    def describe(self, rank: int) -> str:
        """Return who *rank* is: its member's name, with its rank where that has others too."""
        if self.labels:
            return self.labels[rank]
        name = self.names[rank]
        return name if self.places.count(self.places[rank]) == 1 else f"{name} (rank {rank})"

    def described(self) -> list[str]:
        """Return who all are, by rank."""
        return [self.describe(rank) for rank in range(self.size)]
