"""For whom an op waits, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ringd.groups.channels import Channel
from ringd.groups.op import Op
from ringd.groups.roll import Roll
from ringd.groups.seat import Seat
from ringd.groups.session import expected
from ringd.groups.words import waiting_for


@dataclass(slots=True, eq=False)
class Reasons:
    """Says what an op waits for: the ring, a disk, a client, or a member's part in it.

    Invariant: what hides all else comes first.
    """

    _roll: Roll
    _missing_members: Callable[[], str]
    """Says who is out of reach and since when, while the ring is down."""
    _slow_disks: Callable[[], str]
    """Says which members still write the new generation down, and take part only then."""
    broken: str = ""
    """Why the ring is down, once it was up."""

    def waiting_for(self, seat: Seat, op: Op) -> str:
        """Return in words for whom *op* waits."""
        session = seat.session
        if self._roll.up and session.formed and (session.live or not self._slow_disks()):
            if isinstance(seat, Channel) and (not session.live or op.missing()):
                rank = session.view.rank
                other = session.view.describe(1 - rank)
                return f"not {'sent' if rank else 'received'} yet by: {other}"
            return waiting_for(op, session, seat.calls.ranks_that_may_need_input(op))
        return self.forming(seat)

    def forming(self, seat: Seat) -> str:
        """Return in words for whom the session of *seat* waits; empty once it is live."""
        session = seat.session
        if not self._roll.up:
            why = self._missing_members() or self._slow_disks() or self.broken
            return f"the ring is not up{': ' + why if why else ''}"
        if session.live:
            return ""
        # Messages go round through all members: one that keeps them hides those beyond it too.
        if slow := self._slow_disks():
            return slow
        if session.formed:
            return "yet to agree on who takes part: " + ", ".join(session.unconfirmed())
        return self._absent(seat)

    def _absent(self, seat: Seat) -> str:
        """Return which programs lack in a group that has not formed."""
        group, ring = self._roll.groups[seat.group], self._roll.mail.ring
        if conflict := self._roll.conflict(seat):
            return conflict
        part, present = seat.session.part, group.present
        places = expected(part, present, ring.size)
        programs = Counter(member for member, _ in places)
        absent = []
        for rank, (member, local_rank) in enumerate(places):
            here = (member, local_rank) == (ring.rank, part.local_rank)
            there = present.get((member, local_rank))
            if here or (there is not None and not there.session):
                continue
            # The ranks of a part that was split off are known from the beginning.
            which = f" (rank {rank})" if part.ordered else f" (local rank {local_rank})"
            absent.append(ring.names[member] + (which if programs[member] > 1 else ""))
        return "no client in the group on: " + ", ".join(absent)
