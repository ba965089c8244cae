"""What a rank tells the others of its session: over the ring, and beside it on this member."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Protocol, Union

from ringd.collective.view import View
from ringd.groups.actions import Action, Broadcast, Relay
from ringd.wire.link.control import GroupMessage, Joined, Left, Poll


class Letter(NamedTuple):
    """A message for other seats on this member."""

    rank: int
    """The sender's."""
    gid: int
    seq: int
    message: GroupMessage
    payload: bytes | memoryview = b""
    to: Optional[int] = None
    """The rank that it is for; None for all but the sender."""


class News(Protocol):
    """What tells others of one seat that which can wait."""

    @property
    def has_news(self) -> bool:
        """Whether there is any that nothing has carried yet."""

    def flush(self) -> None:
        """Send it, while the ring is up."""


@dataclass(slots=True, eq=False)
class Mail:
    """Sends messages on their ways.

    Invariant: what goes to seats here waits until the event that caused it is through, so that no
    seat hears of another one's state before that is settled.
    """

    ring: View
    """All members of the ring."""
    out: list[Action]
    beside: deque[Letter] = field(default_factory=deque)
    """What the engine hands to seats here."""
    stops: bool = False
    """Whether something is to be stopped by what is to be done."""
    news: dict[News, None] = field(default_factory=dict)
    """Those that may have something to say which can wait, in order: few of thousands of seats."""

    def announce(self, message: Union[Joined, Left], gid: int, *, beside: bool) -> None:
        """Tell all members of the ring of a client's stay; *beside*: and other clients here."""
        ring = self.ring
        if ring.size > 1:
            self.out.append(Broadcast(gid, 0, message, b"", 0, ring.until))
        if beside:
            self.beside.append(Letter(0, gid, 0, message))

    def broadcast(
        self,
        view: View,
        gid: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview = b"",
    ) -> None:
        """Send *message* to all other ranks of a session."""
        if view.until != self.ring.rank:
            action = Broadcast(gid, seq, message, payload, view.rank, view.until, view.side)
            self.out.append(action)
        if len(view.here) > 1:
            # Copied: a program that lent it may write to it before those beside have used it.
            self.beside.append(Letter(view.rank, gid, seq, message, bytes(payload)))

    def say_beside(self, rank: int, gid: int, message: GroupMessage) -> None:
        """Have the seats here hear what the client of *rank*, which is gone, can say no more."""
        self.beside.append(Letter(rank, gid, 0, message))

    def relay(self, view: View, asker: int, gid: int, seq: int, poll: Poll) -> None:
        """Pass a poll of the rank *asker* on, which goes round through all and changes."""
        following = view.next_here
        if following is None and view.until == view.place:
            following = view.here[0]
        if following is None:
            self.out.append(Relay(view.places[asker], gid, seq, poll, asker))
        else:
            self.beside.append(Letter(asker, gid, seq, poll, b"", following))
