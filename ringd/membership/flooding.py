"""What a member knows of all members, and how that spreads.

A change of the own links, or of what else the own link state tells, goes to both neighbours.
What a neighbour told goes on to the other one, if it is news; and what it told of itself goes
back to it. A neighbour that comes up is told everything. So a member hears whatever the others
believe of it, and can outbid what it has never said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ringd.membership.actions import MemberView, Send, Side
from ringd.membership.linkstate import LinkTable, is_newer
from ringd.wire.link.bounds import MAX_ERROR, clean, counted_on
from ringd.wire.link.control import LinkState, News

MAX_DIAL_ERRORS = 64
"""Addresses with their errors that are kept: a name may resolve to another one each time."""


@dataclass(slots=True)
class _Link:
    up: bool = False
    address: str = ""
    error: str = ""
    instance: int = 0


class Flooding:
    """The link states of all members, the own one among them.

    Methods that change something return what is to be sent. ``now`` is in seconds on any clock
    that does not go backwards.

    Args:
        rank: Own position in the roster.
        names: All members' names, in rank order.
        generation: The highest generation on the own disk.
        incarnation: Own start count.
    """

    def __init__(self, rank: int, names: Sequence[str], generation: int, incarnation: int) -> None:
        self._rank = rank
        self._names = names
        self._size = len(names)
        self._links: dict[Side, _Link] = {"left": _Link(), "right": _Link()}
        self._dial_errors: dict[str, str] = {}
        self._disk_error = self._disk_slow = ""
        self._generation = generation
        self._incarnation = incarnation
        self._draining = False
        self._epoch = 0
        self._errors: dict[int, tuple[str, float]] = {}
        """What was said last about each member, and since when; also when it is over."""
        self._missed: dict[int, float] = {}
        """Since when something has been said about each member all the time, in changing words."""
        self.own = self._describe(version=1)
        """This member's state, as last told."""
        self.table = LinkTable(self._size)
        """All members' newest known states."""
        self.table.put(self.own)

    # --- what can be asked ------------------------------------------------------------

    def up(self, side: Side) -> bool:
        """Whether there is a link on *side*."""
        return self._links[side].up

    def neighbour(self, side: Side) -> str:
        """Return the name of the neighbour on *side*."""
        return self._names[self._neighbour(side)]

    def members(self, now: float) -> list[MemberView]:
        """Return what is known of each member, in rank order."""
        reached = self.table.reachable(self._rank)
        edge = {(r + step) % self._size for r in reached for step in (1, -1)}
        views = []
        for rank in range(self._size):
            left, own = self.table[(rank - 1) % self._size], self.table[rank]
            error, since = self._errors.get(rank, ("", None))
            views.append(
                MemberView(
                    rank=rank,
                    state="up" if rank in reached else "down" if rank in edge else "unknown",
                    address="" if left is None else left.address,
                    error=error,
                    error_since=None if since is None else min(since, now),
                    missed_since=self._missed.get(rank),
                    disk_slow=own.disk_slow if own is not None and rank in reached else "",
                )
            )
        return views

    # --- what changes here ------------------------------------------------------------

    def instance(self, side: Side) -> int:
        """Return the process that the link on *side* leads to; 0 without one."""
        link = self._links[side]
        return link.instance if link.up else 0

    def link_up(self, side: Side, address: str, instance: int, now: float) -> list[Send]:
        """Take note of a new link, also in the place of an old one."""
        link = self._links[side]
        link.up, link.address, link.error, link.instance = True, address, "", instance
        if side == "right":
            self._dial_errors.clear()
        self._epoch += 1
        told = self._publish(now, but=side)
        return [*told, Send(side, News(self.table.known()))]

    def links_down(self, sides: tuple[Side, ...], reason: str, now: float) -> list[Send]:
        """Take note that there is no link on *sides* any more."""
        for side in sides:
            link = self._links[side]
            link.up, link.error = False, reason
            self._epoch += 1
        if "right" in sides:
            self._dial_errors.clear()
        return self._publish(now)

    def dial_failed(self, address: str, reason: str, now: float) -> list[Send]:
        """Take note that the right neighbour cannot be reached at *address*."""
        link = self._links["right"]
        # A member with several addresses fails at each in turn: only what is new is told.
        if link.up or self._dial_errors.get(address) == reason:
            return []
        if address not in self._dial_errors and len(self._dial_errors) >= MAX_DIAL_ERRORS:
            del self._dial_errors[next(iter(self._dial_errors))]
        self._dial_errors[address] = reason
        link.address = address
        link.error = "; ".join(f"{a}: {r}" for a, r in self._dial_errors.items())
        return self._publish(now)

    def persisted(self, generation: int, incarnation: int, now: float) -> list[Send]:
        """Take note of what is on disk.

        The generation alone is told with the next change.
        """
        self._generation = generation
        told = self.disk_failed("", now)
        if incarnation != self._incarnation:
            self._incarnation = incarnation
            self._epoch += 1
            told += self._publish(now, version=1)
        return told

    def disk_failed(self, reason: str, now: float, believed: LinkState | None = None) -> list[Send]:
        """Take note of why the state file cannot be written; empty if it can.

        Until then no incarnation can be taken that is above what is *believed* of this member, who
        has lost its state file. So that the others hear of it all the same, it goes on from what it
        has said in its former life: with an error, that is fit for no ring.
        """
        slow, self._disk_slow = self._disk_slow, ""  # either way the write is over
        version = None
        if believed is not None and is_newer(believed, self.own) and _goes_on(believed):
            self._incarnation, version = believed.incarnation, believed.version + 1
            self._epoch = max(self._epoch, believed.epoch)
        elif self._disk_error == reason:
            return self._publish(now) if slow else []
        self._disk_error = reason
        self._epoch += 1
        return self._publish(now, version=version)

    def disk_slow(self, reason: str, now: float) -> list[Send]:
        """Take note that a write is under way which takes long; nothing begins anew for that."""
        self._disk_slow = reason
        return self._publish(now)

    def drain(self, now: float) -> list[Send]:
        """Tell that this member takes part in no new ring."""
        self._draining = True
        return self._publish(now)

    def leave(self, now: float) -> list[Send]:
        """Tell that this member is in no ring from now on."""
        self._epoch += 1
        return self.drain(now)

    def resume(self, now: float) -> list[Send]:
        """Tell that this member takes part again."""
        self._draining = False
        self._epoch += 1
        return self._publish(now)

    # --- what changes elsewhere -------------------------------------------------------

    def received(
        self, side: Side, states: Iterable[LinkState], now: float
    ) -> tuple[list[Send], LinkState | None]:
        """Take over what is newer in *states*; what they say of this member is not for here.

        Returns:
            What is to be sent, and one state that ends any ring formed before it, if any does.
        """
        merge = self.table.merge(state for state in states if state.rank != self._rank)
        if not merge.changed:
            return [], None
        for state in merge.changed:
            self._note_errors(state.rank, now)
        other: Side = "right" if side == "left" else "left"
        sends = self._tell(other, merge.changed)
        # What a member tells both neighbours at once meets itself on the far side of the ring, and
        # would come back to nobody.
        if of_itself := tuple(s for s in merge.changed if s.rank == self._neighbour(side)):
            sends += self._tell(side, of_itself)
        return sends, merge.moved

    # --- inside -----------------------------------------------------------------------

    def _publish(
        self, now: float, *, version: int | None = None, but: Side | None = None
    ) -> list[Send]:
        """Tell the neighbours, except on the side *but*, about this member's new state."""
        self.own = self._describe(self.own.version + 1 if version is None else version)
        self.table.put(self.own)
        for rank in (self._rank, (self._rank + 1) % self._size, (self._rank - 1) % self._size):
            self._note_errors(rank, now)
        sends: list[Send] = []
        for side in self._links:
            if side != but:
                sends += self._tell(side, (self.own,))
        return sends

    def _neighbour(self, side: Side) -> int:
        return (self._rank + (1 if side == "right" else -1)) % self._size

    def _tell(self, side: Side, states: tuple[LinkState, ...]) -> list[Send]:
        return [Send(side, News(states))] if self.up(side) else []

    def _describe(self, version: int) -> LinkState:
        alone = self._size == 1
        return LinkState(
            rank=self._rank,
            incarnation=self._incarnation,
            version=version,
            left_up=self.up("left") or alone,
            right_up=self.up("right") or alone,
            generation=self._generation,
            address=clean(self._links["right"].address, MAX_ERROR),
            left_error=self._complaint("left"),
            right_error=self._complaint("right"),
            disk_error=_told("state file", self._disk_error),
            draining=self._draining,
            epoch=self._epoch,
            disk_slow=_told("state file", self._disk_slow),
            right_instance=self.instance("right"),
        )

    def _complaint(self, side: Side) -> str:
        return _told(f"{side} neighbour {self.neighbour(side)}", self._links[side].error)

    def _note_errors(self, rank: int, now: float) -> None:
        """Remember since when there are errors about *rank* and its neighbours, and these words."""
        for near in (rank, (rank + 1) % self._size, (rank - 1) % self._size):
            text = self.table.complaint(near)
            if not text:
                self._missed.pop(near, None)
            elif near not in self._missed or self._errors[near][0] != text:
                self._missed.setdefault(near, now)
                self._errors[near] = (text, now)


def _goes_on(state: LinkState) -> bool:
    """Whether there are numbers behind those of *state*, which may be a lie."""
    return counted_on(state.version, 0) and counted_on(state.epoch, 0)


def _told(what: str, error: str) -> str:
    """Return *error* as the others are told of it: within the bounds, as it comes back as it is."""
    return clean(f"{what}: {error}", MAX_ERROR) if error else ""
