"""The session of a group: whose calls belong together, by agreement of all members.

A *session* is agreed on when every member of the ring has a client in the group: it is the
tuple of their join ids, and its number (``gid``) is a hash of that, so all members name it
alike without asking anybody. Ops are numbered from 0 within it.

A member goes *live* once every other one has said that it is in the session too, and offers
nothing before. So a session that not all agree on can be forgotten without a trace.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b

from ringd.collective.view import View
from ringd.groups.actions import Action, Broadcast
from ringd.wire.link.control import GroupMessage, Joined

MAX_JOIN_ID = 2**64 - 1

_REMEMBERED_SESSIONS = 64
"""News is late by a trip round the ring, not by that many joins of other members."""


def session_number(group: str, join_ids: tuple[int, ...]) -> int:
    """Return the u64 under which all members know the session of these clients."""
    digest = blake2b(group.encode(), digest_size=8)
    for join_id in join_ids:
        digest.update(join_id.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def well_formed(join_ids: tuple[int, ...], size: int) -> bool:
    """Whether these can be the join ids of a session of *size* members."""
    return len(join_ids) == size and all(0 < join_id <= MAX_JOIN_ID for join_id in join_ids)


@dataclass(slots=True, eq=False)
class Session:
    """Who has agreed on the session that a client is in.

    Invariant: it is live only while every member has confirmed it in this generation.
    """

    group: str
    join_id: int
    """Of the client here."""
    view: View
    _out: list[Action]
    gid: int = 0
    """0 until the members are known."""
    join_ids: tuple[int, ...] = ()
    counts: list[int] = field(default_factory=list)
    """By rank, how many ops it is known to have offered."""
    _confirmed: set[int] = field(default_factory=set)
    _given_up: deque[tuple[int, ...]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED_SESSIONS)
    )
    """Those that a member left before they went live; late news of them may come yet."""

    def __post_init__(self) -> None:
        self.counts = [0] * self.view.size

    def may_be(self, join_ids: tuple[int, ...]) -> bool:
        """Whether these can be the members: we are one, and none is known to have left."""
        return (
            well_formed(join_ids, self.view.size)
            and join_ids[self.view.rank] == self.join_id
            and join_ids not in self._given_up
        )

    def form(self, join_ids: tuple[int, ...]) -> None:
        """Take *join_ids* as the members."""
        self.gid = session_number(self.group, join_ids)
        self.join_ids = join_ids
        self.suspend()

    def give_up(self) -> None:
        """Forget the members: they never agreed on this session."""
        self._given_up.append(self.join_ids)
        self.gid, self.join_ids = 0, ()
        self.counts = [0] * self.view.size
        self.suspend()

    def suspend(self) -> None:
        """The ring broke, or has yet to form: nobody else is known to be in the session."""
        self._confirmed = {self.view.rank} if self.formed else set()

    def confirm(self, rank: int) -> bool:
        """*rank* is in the session in this generation too; return whether that made it live."""
        news = rank not in self._confirmed
        self._confirmed.add(rank)
        return news and self.live

    @property
    def formed(self) -> bool:
        """Whether the members are known."""
        return self.gid != 0

    @property
    def live(self) -> bool:
        """Whether all members have confirmed it in this generation."""
        return len(self._confirmed) == self.view.size

    def unconfirmed(self) -> list[str]:
        """Return the names of the members that have not confirmed it."""
        return [name for r, name in enumerate(self.view.names) if r not in self._confirmed]

    def count(self, rank: int, seq: int) -> None:
        """*rank* has offered op *seq*."""
        self.counts[rank] = max(self.counts[rank], seq + 1)

    def introduce(self) -> None:
        """Tell the others that the client is in the group, and in which session."""
        self._out.append(Broadcast(0, 0, Joined(self.group, self.join_id, self.join_ids)))

    def broadcast(self, seq: int, message: GroupMessage, payload: bytes | memoryview = b"") -> None:
        """Send *message* to all other members."""
        self._out.append(Broadcast(self.gid, seq, message, payload))
