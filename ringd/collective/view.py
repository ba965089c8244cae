"""A communicator as one of its ranks sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """The ranks that make calls together, and which of them this one is.

    Invariant: *rank* is one of them.
    """

    names: tuple[str, ...]
    """Of the ranks, in order."""
    rank: int
    """This one's."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(self.names):
            raise ValueError(f"rank {self.rank} is not one of {len(self.names)}")

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.names)

    @property
    def name(self) -> str:
        """This rank's name."""
        return self.names[self.rank]

    @property
    def left(self) -> int:
        """The rank from which data comes."""
        return (self.rank - 1) % len(self.names)

    @property
    def right(self) -> int:
        """The rank to which data goes."""
        return (self.rank + 1) % len(self.names)
