"""Clients that others count on and that are not here: yet to come back, or gone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from ringd.collective.view import View
from ringd.errors import GroupLost
from ringd.groups.quota import MOST_ABSENT, PEER, STAY
from ringd.groups.seat import Before
from ringd.groups.session import Peers
from ringd.groups.words import client_on
from ringd.wire.link.control import Left

_REMEMBERED_LEAVERS = 1024


class Notice(NamedTuple):
    """What the members of session *gid* are to be told of a client that left it."""

    gid: int
    rank: int
    """The client's."""
    left: Left


@dataclass(slots=True)
class Absent:
    """A client that others count on and that has not come back to this restarted daemon."""

    group: str
    session: Peers
    gid: int
    """The session's."""
    rank: int
    """Its own there."""
    local_rank: int | None
    """Which one of its member's programs it was; None if that is not known."""
    due: float
    loss: str = ""
    """Who left that session first, as another one of it says that has left."""

    @property
    def cost(self) -> int:
        """Bytes that it takes, about."""
        return STAY + 2 * PEER * len(self.session.join_ids)


@dataclass(slots=True, eq=False)
class Absences:
    """Waits for absent clients, and remembers what was said of those that are gone.

    Invariant: of each client that is gone the same is said, however often others ask.
    """

    _view: View
    _reattach: float
    """Seconds that a client may take to come back."""
    absent: dict[int, Absent] = field(default_factory=dict)
    """By join id."""
    _held: int = 0
    """Bytes that these take."""
    _gone: OrderedDict[int, Notice] = field(default_factory=OrderedDict)

    def counted_on(  # noqa: PLR0917
        self,
        group: str,
        session: Peers,
        gid: int,
        rank: int,
        local_rank: int | None,
        successor: Before | None,
        now: float,
    ) -> Notice | None:
        """Others count on our client of *rank* in a session, and it is not here: what to say?

        It may have gone, with or without having found back into that session, a *successor*
        may have its place, or it is given some time to come back.
        """
        ours = session.join_ids[rank]
        known = self.absent.get(ours)
        if known is not None and (local_rank is None or known.local_rank is not None):
            return None
        absent = Absent(group, session, gid, rank, local_rank, now + self._reattach)
        if known is not None:  # by one of its channels, which does not say whose place that was
            absent.due, absent.loss = known.due, known.loss
        gone = self._gone.get(ours)
        if gone is not None:
            return gone if gone.gid == gid else self._give_up(ours, absent, gone.left.message)
        if successor is not None:
            return self._replaced(ours, absent, successor)
        self._forget(ours)
        if self._held + absent.cost <= MOST_ABSENT:
            self.absent[ours] = absent
            self._held += absent.cost
        return None

    def _forget(self, join_id: int) -> None:
        absent = self.absent.pop(join_id, None)
        if absent is not None:
            self._held -= absent.cost

    def taken(self, group: str, join_id: int, local_rank: int, before: Before) -> list[Notice]:
        """A client joins, or comes back: no other of its group and local rank will."""
        self._forget(join_id)
        return [
            self._replaced(other, absent, before)
            for other, absent in list(self.absent.items())
            if absent.group == group
            and (absent.local_rank == local_rank or other == before.join_id)
        ]

    def _replaced(self, join_id: int, absent: Absent, successor: Before) -> Notice:
        """A new client has the place of an absent one, or the same client under a new number."""
        why = successor.loss if successor.join_id == join_id else absent.loss
        return self._give_up(join_id, absent, why or self._says(absent, "was replaced by another"))

    def peer_left(self, origin: int, left: Left) -> None:
        """Another one has left a session that an absent one is in: that may be what ended it."""
        for absent in self.absent.values():
            counts = absent.session.rank_of(left.join_id, origin) is not None
            if counts and left.code == GroupLost.code:
                absent.loss = absent.loss or left.message

    def overdue(self, now: float, reason: str) -> list[Notice]:
        """Give up those that had time until *now*."""
        late = [(join_id, absent) for join_id, absent in self.absent.items() if now >= absent.due]
        return [
            self._give_up(join_id, absent, absent.loss or self._says(absent, reason))
            for join_id, absent in late
        ]

    def _says(self, absent: Absent, reason: str) -> str:
        return client_on(self._view.name, reason, f"rank {absent.rank}")

    def postpone(self, until: float) -> None:
        """Wait for all of them until that moment at least."""
        for absent in self.absent.values():
            absent.due = max(absent.due, until)

    def _give_up(self, join_id: int, absent: Absent, why: str) -> Notice:
        self._forget(join_id)
        left = Left(absent.group, join_id, 0, GroupLost.code, why)
        return self.remember(absent.gid, absent.rank, left)

    def remember(self, gid: int, rank: int, left: Left) -> Notice:
        """Keep the last words on a client, for those that ask."""
        notice = self._gone[left.join_id] = Notice(gid, rank, left)
        while len(self._gone) > _REMEMBERED_LEAVERS:
            self._gone.popitem(last=False)
        return notice

    def last_words(self, join_id: int) -> Left | None:
        """Return what was said to all of a client that is gone, as far as is known."""
        gone = self._gone.get(join_id)
        return None if gone is None else gone.left
