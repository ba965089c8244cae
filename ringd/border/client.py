"""A client program as the daemon sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringd import errors
from ringd.border.lifeline import Lifeline
from ringd.wire import lifeline
from ringd.wire.border import Ref, Reply

if TYPE_CHECKING:
    from ringd.border.server import BorderServer


class Client:
    """One connected program: its lifeline, and the ZeroMQ routing id that belongs to it."""

    __slots__ = (
        "_lifeline",
        "_server",
        "alive",
        "group",
        "pid",
        "program",
        "routing_id",
        "token",
        "uid",
    )

    def __init__(self, server: BorderServer, lifeline: Lifeline) -> None:
        self._server = server
        self._lifeline = lifeline
        self.token = lifeline.token
        self.routing_id: bytes | None = None
        """Of its ZeroMQ connection; None before it attached."""
        self.alive = True
        """False once it is gone or has left; :meth:`send` is in vain from then on."""
        self.pid = lifeline.credentials.pid
        """Process id, in the kernel's word."""
        self.uid = lifeline.credentials.uid
        """User id, in the kernel's word."""
        self.group = ""
        """The group that it attached to last."""
        self.program = ""
        """The program's name, in its own word."""

    def __repr__(self) -> str:
        return f"<Client {self.program or '?'} pid={self.pid}>"

    @property
    def segment_bytes(self) -> int:
        """Bytes of this client's segments that are mapped here, dropped ones in use included."""
        return self._lifeline.segments.mapped_bytes

    def send(self, reply: Reply, payload: bytes | memoryview | None = None) -> None:
        """Send *reply*, with *payload* as its second frame; copied before this returns.

        A message to a client that is gone is dropped.
        """
        if self.alive and self.routing_id is not None:
            self._server.send(self, reply, payload)

    @property
    def ending(self) -> bool:
        """Whether it is gone, though some of what it handed over may still be unread."""
        return self._lifeline.ended

    def tell_session(self, join_id: int, session: tuple[int, ...]) -> None:
        """Tell it the join ids of its peers, in a way that outlives this process."""
        if self.alive:
            self._lifeline.send(lifeline.pack_session(join_id, session))

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
        self._lifeline.close()
