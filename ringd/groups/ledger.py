"""Who is done with which ops: the floors that decide when inputs may be forgotten.

A member's *done* floor says that its client is sure to have the outcome of every op below,
whatever happens to its daemon. What all members are done with is *released*: no rerun can
need its inputs again, and everybody forgets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ringd.collective.view import View


@dataclass(slots=True)
class Ledger:
    """The floors of one session, as far as they are known here.

    Invariant: floors only rise, but for :meth:`forget_peers`; nothing is released that some
    member is not done with.
    """

    view: View
    released: int
    """Every op below is done on all members, and forgotten here."""
    done: list[int] = field(default_factory=list)
    """By rank."""
    announced: int = 0
    """Our own floor as the others know it."""

    def __post_init__(self) -> None:
        self.forget_peers()

    def forget_peers(self) -> None:
        """Start over with other members."""
        self.done = [0] * self.view.size
        self.announced = 0

    def rise(self, rank: int, floor: int) -> bool:
        """Note that *rank* is done below *floor*; return whether that was news."""
        if floor <= self.done[rank]:
            return False
        self.done[rank] = floor
        return True

    @property
    def own(self) -> int:
        """Our own done floor."""
        return self.done[self.view.rank]

    @property
    def releasable(self) -> int:
        """What all members are done with."""
        return min(self.done)

    @property
    def unannounced(self) -> bool:
        """Whether the others lack news of our own floor."""
        return self.own > self.announced
