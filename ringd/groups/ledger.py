"""Who is done with which ops: the floors that decide when inputs may be forgotten.

A member's *done* floor says that its client is sure to have the outcome of every op below,
whatever happens to its daemon. What all members are done with is *released*: no rerun can
need its inputs again, and everybody forgets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ringd.groups.op import OK, Op, Told


@dataclass(slots=True)
class Ledger:
    """The floors of one session as rank *rank* of *size* knows them."""

    rank: int
    size: int
    released: int
    """Every op below is done on all members."""
    acked: int = 0
    """The client has received every outcome below."""
    done: list[int] = field(default_factory=list)
    """By rank."""
    announced: int = 0
    """Our own floor as the others know it."""
    told: int = 0
    """What is released, as the client knows it."""

    def __post_init__(self) -> None:
        self.acked = self.told = self.released
        self.forget_peers()

    def forget_peers(self) -> None:
        """Start over with other members."""
        self.done = [0] * self.size
        self.announced = 0

    def heard(self, rank: int, floor: int) -> bool:
        """*rank* is done below *floor*; return whether that was news."""
        if floor <= self.done[rank]:
            return False
        self.done[rank] = floor
        return True

    @property
    def own(self) -> int:
        """Our own done floor."""
        return self.done[self.rank]

    @property
    def releasable(self) -> int:
        """What all members are done with."""
        return min(self.done)

    @property
    def unannounced(self) -> bool:
        """Whether the others lack news of our own floor."""
        return self.own > self.announced

    @property
    def untold(self) -> bool:
        """Whether the client lacks news of what is released."""
        return self.released > self.told

    def settled(self, op: Op, *, acks: bool) -> bool:
        """Whether the client is sure to have *op*'s outcome.

        One that has left is not waited for (*acks* is false): it will offer nothing again.
        """
        if not op.ended or op.submission is None:
            return False
        if not acks or op.told is Told.KNEW or op.seq < self.acked:
            return True
        return op.outcome == OK and op.submission.sealed

    def advance(self, ops: dict[int, Op], *, acks: bool) -> bool:
        """Raise our own floor over what is settled; return whether it rose."""
        floor = max(self.own, self.released)
        while (op := ops.get(floor)) is not None and self.settled(op, acks=acks):
            floor += 1
        return self.heard(self.rank, floor)
