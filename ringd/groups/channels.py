"""Messages between two ranks: a seat of its own for each pair and tag, within their session.

A *channel* is what one rank sends another one under one tag. Its ops are numbered by themselves,
and each is a call of two ranks, the sender (0) and the receiver (1); so all that holds for calls
holds for messages. It goes live when both have opened it in this generation, and ends with the stay
of either. Its messages take the shorter way round the ring.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from ringd.collective.call import MAX_TAG
from ringd.collective.view import Side, View
from ringd.errors import GroupLost
from ringd.groups.actions import Forget, TellArrived
from ringd.groups.offers import Rules
from ringd.groups.seat import Join, Seat
from ringd.groups.session import MAX_JOIN_ID, Peers, Session, channel_number
from ringd.wire.link.control import Closed, Left, Opened

_ALL_DONE = 2**62
"""A done floor above all ops."""


class Key(NamedTuple):
    """Which channel of a session."""

    source: int
    """The sender's rank."""
    to: int
    """The receiver's."""
    tag: int

    def objection(self, view: View) -> str:
        """Return why the rank of *view* cannot open it; empty if it can."""
        if not (0 <= self.source < view.size and 0 <= self.to < view.size):
            return f"rank {self.source} cannot send to rank {self.to} in a group of {view.size}"
        if self.source == self.to:
            return f"rank {self.source} cannot send to itself"
        if view.rank not in self[:2]:
            return f"rank {view.rank} has no part in what rank {self.source} sends to {self.to}"
        if not 0 <= self.tag <= MAX_TAG:
            return f"a tag is a number from 0 to {MAX_TAG}, not {self.tag}"
        return ""


class Opening(NamedTuple):
    """What a client says when it opens its end, anew or (with the same number) to a new daemon."""

    join_id: int
    """Of its stay in the group."""
    channel_id: int
    """Its own number for this end, which it chooses as it does a join id."""
    key: Key
    released: int = 0
    expected: int = 0
    """Ops from *released* up to this one are those that it is going to submit again."""
    watch: bool = False
    """Whether it wants to be told how many messages have come."""

    def objection(self, view: View) -> str:
        """Return why the rank of *view* cannot do that; empty if it can."""
        if not 0 < self.channel_id <= MAX_JOIN_ID or self.released < 0:
            return f"a channel cannot have number {self.channel_id}, nor begin at {self.released}"
        return self.key.objection(view)


def pair(view: View, key: Key) -> View:
    """Return the view of a channel, of a rank that has part in it."""
    ranks = key[:2]
    rank = ranks.index(view.rank)
    places = view.places[key.source], view.places[key.to]
    rightwards = (places[1 - rank] - places[rank]) % view.ring_size
    side: Side = "right" if 2 * rightwards <= view.ring_size else "left"
    names = view.names[key.source], view.names[key.to]
    labels = view.describe(key.source), view.describe(key.to)
    return View(names, rank, places, view.ring_size, side, labels)


class Channel(Seat):
    """One end of a channel.

    Invariant: it is opened only by a client that knows its peers, so that its session is for good.
    """

    def __init__(self, client: Hashable, opening: Opening, parent: Seat, rules: Rules) -> None:
        self.parent = parent
        """The stay in which it was opened."""
        self.key = key = opening.key
        self.watched = opening.watch
        """The client wants to be told how many messages have come."""
        of = parent.session
        view = pair(of.view, key)
        peers = Peers(tuple(of.peers.join_ids[rank] for rank in key[:2]), view.places)
        join = Join(
            parent.group, opening.channel_id, parent.on_loss, opening.released, opening.expected
        )
        session = Session(join.group, join.join_id, of.part, of.mail, key)
        session.take(channel_number(of.gid, *key), peers, view)
        super().__init__(client, join, session, rules)
        self.pledged = True
        self.met = opening.expected > opening.released
        """Something may have been offered to the other end, by this daemon or a former one."""

    def introduce(self) -> None:
        """Tell the other end that this one is open, and how far it is."""
        self._say_open(answer=False)
        if self.left is not None:
            left = self.left
            self.session.broadcast(0, Closed(left.submitted, left.code, left.message))
        if self.ledger.own:
            self.ledger.announce_done()

    def _say_open(self, *, answer: bool) -> None:
        source, to = self.session.peers.join_ids
        view = self.session.view
        place = view.places[1 - view.rank]
        self.session.broadcast(0, Opened(answer, self.group, (source, to), place))

    def hear(self, rank: int, message: Opened | Closed) -> None:
        """The other end is open, or its stay is over."""
        if isinstance(message, Opened):
            self._peer_opened(rank, answer=message.answer)
            return
        self.peer_left(rank, message.submitted, message.code, message.message)
        if message.forgotten:
            self.calls.peer_done(rank, _ALL_DONE)

    def _peer_opened(self, rank: int, *, answer: bool) -> None:
        if not answer:  # it is not known to have heard of this one
            self._say_open(answer=True)
        if self.session.confirm(rank):
            self.go_live()

    def go_live(self) -> None:
        """As of a stay; the client knows its peers."""
        self.met = True
        super().go_live()
        self.tell_arrived()

    def tell_again(self) -> None:
        """As of a stay; the client knows its peers, and how the opening ended it hears by that."""
        if self.calls.limit is not None:
            self.caller.tell_lost(self.calls.limit, *self.calls.loss)
        self.caller.tell_released(self.ledger.released)
        self.tell_arrived()

    def tell_forgotten(self) -> None:
        """Let go of what is kept for it beside us."""
        client = self.caller.client
        if client is not None:
            self.session.mail.out.append(Forget(client, self.join_id))

    def tell_arrived(self) -> None:
        """Tell the client how many messages have come, if it wants to know."""
        client = self.caller.client
        if self.watched and client is not None and self.session.view.rank == 1:
            self.session.mail.out.append(TellArrived(client, self.join_id, self.session.counts[0]))

    @property
    def client_waits(self) -> bool:
        """As of a stay; a receiver that watches makes its call when a message has come."""
        watches = self.watched and self.caller.client is not None and self.session.view.rank == 1
        return super().client_waits or (watches and self.session.counts[0] <= self.caller.next_seq)

    def leave(self, message: str, code: str = GroupLost.code) -> Left:
        """As of a stay; what was never offered to the other end is not completed for it."""
        if not self.met:
            self.calls.cut(0, code, message)
        return super().leave(message, code)

    def peer_is_elsewhere(self) -> None:
        """The other end has no part in this session: it had given that up."""
        if self.left is not None:
            self.calls.cut(0, self.left.code, self.left.message)

    def end_with(self, rank: int, left: Left, submitted: int) -> None:
        """The stay of *rank*, the other end, is over; it had *submitted* so many calls here."""
        self.peer_left(rank, submitted, left.code, left.message)
