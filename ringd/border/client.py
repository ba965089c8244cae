"""A client program as the daemon sees it."""

from __future__ import annotations

from typing import Protocol

from ringd import errors
from ringd.border.callsocket import CallSocket
from ringd.border.lifeline import Lifeline
from ringd.border.limits import Limits
from ringd.border.unread import Unread
from ringd.loop import Loop, Timer
from ringd.wire.border import lifeline
from ringd.wire.border.messages import (
    Carry,
    Completed,
    Failed,
    Held,
    Lost,
    Ref,
    Released,
    Reply,
    RingState,
    parts,
)

_ALL = 1 << 64
"""In the place of a number of ops: more than there are."""

NUDGE_AFTER = 0.05
"""Seconds until a client is woken that does not acknowledge what somebody waits for."""

MOST_UNREAD = 128 << 20
"""Bytes of streams that wait for a program that does not read: twice what those share that it has
granted. Beyond that its connection ends; it may come back, and its streams go on."""

_MOST_TURNED_AWAY = 4096


class Outbox(Protocol):
    """What clients have in common."""

    limits: Limits

    def send(self, client: Client, reply: Reply, payload: bytes | memoryview | None) -> None:
        """Send *reply* to *client* over ZeroMQ, with *payload*, which is copied."""

    def does_not_read(self, client: Client) -> None:
        """Part with *client*, later: it has not read thousands of messages."""


class Client:
    """One connection of a program: its lifeline, its call socket, and its stays in groups."""

    __slots__ = (
        "_lifeline",
        "_loop",
        "_nudge",
        "_nudged",
        "_outbox",
        "_owed_since",
        "_owes",
        "account",
        "alive",
        "calls",
        "channels",
        "holds",
        "pid",
        "places",
        "program",
        "routing_id",
        "stays",
        "token",
        "turned_away",
        "uid",
        "unread",
        "uses_call_socket",
    )

    def __init__(self, outbox: Outbox, lifeline: Lifeline, calls: CallSocket, loop: Loop) -> None:
        self.calls = calls
        self.uses_call_socket = False
        """Whether it is spoken to over its call socket, and not over ZeroMQ."""
        self.holds = False
        """Whether ends of streams are in this program."""
        self._outbox = outbox
        self._lifeline = lifeline
        self._loop = loop
        self._owes: dict[int, int] = {}
        """By join id: somebody waits for it to acknowledge all ops below."""
        self._owed_since = 0.0
        self._nudge: Timer | None = None
        self._nudged = False
        """It was woken and has said nothing since: no need to fill the lifeline of one that is
        stopped."""
        self.account = lifeline.account
        """What it has of the daemon."""
        self.token = lifeline.token
        self.routing_id: bytes | None = None
        """Of its ZeroMQ connection; None before it attached."""
        self.alive = True
        """False once it is gone; :meth:`send` is in vain from then on."""
        self.pid = lifeline.credentials.pid
        """Process id, in the kernel's word."""
        self.uid = lifeline.credentials.uid
        """The user's, likewise."""
        self.stays: dict[int, str] = {}
        """The groups that it is in, or wants to be, by join id."""
        self.channels: dict[int, int] = {}
        """Its ends of channels, by number: of which stay, or of one that followed upon that."""
        self.places: dict[int, tuple[int, int]] = {}
        """Of its stays and ends of channels: its rank, and the number of ranks, once both are known
        for good."""
        self.turned_away: set[int] = set()
        """Stays and channels that are to come again, by number; what was sent behind them is in
        vain."""
        self.unread = Unread()
        self.program = ""
        """The program's name, in its own word."""

    def about(self, other: Client) -> str:
        """Return who this is and what to do, for *other*, which wants to be in its place."""
        name = self.program or "a program"
        if self.pid <= 0:  # hidden from here, as between containers
            return f"{name}, in another container; end it, or connect with another group="
        if self.pid != other.pid:
            return f"{name} (pid {self.pid}); end it, or connect with another group="
        return errors.open_here(name, self.pid)

    def __repr__(self) -> str:
        return f"<Client {self.program or '?'} pid={self.pid}>"

    @property
    def limits(self) -> Limits:
        """What it may have."""
        limits = self._outbox.limits
        return limits if self.uses_call_socket else limits.over_zmq

    @property
    def segment_bytes(self) -> int:
        """Bytes of this client's segments that are mapped here, dropped ones in use included."""
        return self.account.memory.used

    def send(self, reply: Reply, payload: bytes | memoryview | None = None) -> None:
        """Send *reply*, with *payload*, which is copied before this returns.

        A message to a client that is gone, or of a stay that has ended, is dropped.
        """
        if not self.alive or self.routing_id is None:
            return
        if isinstance(reply, (Completed, Failed, Released, Lost)):  # all that has no bound else
            number = reply.join_id
            if number not in self.stays and number not in self.channels:
                return
            self.unread.sent(number, reply.seq if isinstance(reply, (Completed, Failed)) else None)
        windows = len(self.stays) + len(self.channels)
        if self.unread.count > 4 * self._outbox.limits.window * windows + 1024:
            self._outbox.does_not_read(self)
        elif self.uses_call_socket:
            self.calls.send(parts(reply, payload))
        else:
            self._outbox.send(self, reply, payload)
        if isinstance(reply, (Completed, Failed)):
            if reply.ack or self._owes:
                self._expect(reply.join_id, reply.seq + 1 if reply.ack else 0)
        elif isinstance(reply, Lost) and reply.join_id in self.stays:
            self._expect(reply.join_id, _ALL)  # it joins anew, for which others may wait

    def tell(self, reply: Held | RingState | Carry, payload: memoryview | None = None) -> None:
        """Send *reply* to a program that holds ends of streams; *payload* is copied.

        Bounded here: what comes for it from other members is bounded only by what it granted them.
        """
        if self.alive:
            self.calls.send(parts(reply, payload), most_waiting=MOST_UNREAD)

    def enters(self, join_id: int, group: str, former: int) -> None:
        """It joins *group*, in the place of its stay *former*, if it had that."""
        self.leaves(join_id)  # nobody waits for what was before that
        for channel, stay in self.channels.items():
            if stay == former:  # what is under way there goes on
                self.channels[channel] = join_id
        self.leaves(former)
        self.stays[join_id] = group
        self.account.groups.take()
        self._nudged = False

    def opens(self, channel: int, stay: int) -> None:
        """It opens an end of a channel, in a stay of its own."""
        self.turned_away.discard(channel)
        if channel not in self.channels:
            self.channels[channel] = stay
            self.account.channels.take()

    def closes(self, channel: int) -> None:
        """Nothing more is said of that end of a channel."""
        if self.channels.pop(channel, None) is not None:
            if self.alive:  # else its account is closed
                self.account.channels.give()
            self._forget(channel)

    def is_in(self, number: int) -> bool:
        """Whether it has that stay, or that end of a channel."""
        return number in self.stays or number in self.channels

    def group_of(self, number: int) -> str:
        """Return the group of a stay, or of an end of a channel; empty if it has neither."""
        return self.stays.get(self.channels.get(number, number), "")

    def turn_away(self, join_id: int) -> None:
        """It cannot join now, and is told to try again; nor open a channel in such a stay."""
        if len(self.turned_away) >= _MOST_TURNED_AWAY:  # of those that come again, none is old
            self.turned_away.clear()
        self.turned_away.add(join_id)

    def leaves(self, join_id: int) -> None:
        """It has left that group."""
        if self.stays.pop(join_id, None) is not None and self.alive:
            self.account.groups.give()
        self.turned_away.discard(join_id)
        self.unread.left(join_id)
        self._forget(join_id)
        for channel in [c for c, stay in self.channels.items() if stay == join_id]:
            self.unread.left(channel)
            self.closes(channel)

    def _forget(self, number: int) -> None:
        self._owes.pop(number, None)
        self.places.pop(number, None)
        self.unread.forget(number)

    def acknowledged(self, join_id: int, acked: int) -> None:
        """It has spoken, and has all outcomes of that stay below *acked*."""
        self.unread.has(join_id, acked)
        if acked >= self._owes.get(join_id, 0):
            self._owes.pop(join_id, None)
        if self._owes and self._nudged:  # for the rest, which may have come after it was woken
            self._owed_since = self._loop.now()
            self._nudge_in(NUDGE_AFTER)
        self._nudged = False

    def _expect(self, join_id: int, acked: int) -> None:
        """Wake it if it does not say that it has what is below *acked*, if that is any.

        A program that computes takes no messages in.
        """
        if not self._owes:
            self._owed_since = self._loop.now()
        if acked:
            self._owes[join_id] = max(self._owes.get(join_id, 0), acked)
        if self._nudge is None and not self._nudged:
            self._nudge_in(NUDGE_AFTER)

    def _nudge_in(self, seconds: float) -> None:
        self._nudge = self._loop.call_later(seconds, self._nudge_it)

    def _nudge_it(self) -> None:
        self._nudge = None
        if not (self._owes and self.alive):
            return
        left = self._owed_since + NUDGE_AFTER - self._loop.now()
        if left > 0:  # for that it had no time yet
            self._nudge_in(left)
        else:
            self._nudged = True
            self._lifeline.send(lifeline.NOTHING)

    @property
    def ending(self) -> bool:
        """Whether it is gone, though some of what it handed over may still be unread."""
        return self._lifeline.ended

    @property
    def died(self) -> bool:
        """Whether its process has ended."""
        return self._lifeline.died

    @property
    def parted(self) -> bool:
        """Whether it said that it hangs up and lives on."""
        return self._lifeline.parted

    def tell_session(
        self, join_id: int, session: tuple[int, ...], places: tuple[int, ...] = ()
    ) -> None:
        """Tell it who and where its peers are, in a way that outlives this process."""
        if self.alive:
            self._lifeline.send(lifeline.pack_session(join_id, session, places))

    def view(self, ref: Ref, *, writable: bool) -> memoryview:
        """Return the bytes that *ref* stands for; valid as long as it is referenced.

        Raises:
            Refused: unknown segment, or a range outside of it.
            ResourceExhausted: the segment could not be mapped.
        """
        if ref.segment not in self._lifeline.segments:
            # Its record was sent before the message that refers to it, on the other socket.
            self._lifeline.drain(ref.segment)
        if not self.alive:
            raise errors.Refused("the client is gone")
        return self._lifeline.segments.view(ref, writable=writable)

    def hang_up(self) -> None:
        """Close the lifeline, which tells the client that it has no place here any more."""
        self.alive = False
        self.calls.close()
        self._lifeline.close()
