"""The gate before the ZeroMQ socket: who comes in, and under which name.

libzmq ends the process when it accepts a connection for which there is no descriptor, lets each
client choose the name by which it is told from others, and says neither who has sent a message nor
whether one was read. So connections are accepted here, within the accounts of their users by the
kernel's word, and what they say is relayed to the ZeroMQ socket, which listens where only this
daemon's user can connect. The gate puts a name of its own into each connection's first words.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial

from ringd.border.acceptor import Acceptor
from ringd.border.accounts import Account
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.wire.border import zmtp

DESCRIPTORS = 3
"""That a connection takes: accepted here, made to the ZeroMQ socket, and accepted there."""

_PIECE = 64 << 10  # bytes that are under way in each direction
_REMEMBERED = 1.0  # seconds, for which something of one that has ended may be unheard
_NAME = struct.Struct(">BQ")  # libzmq's own begin with zero, too


class Gate:
    """Owns *listener*, and a relay for each connection.

    Args:
        loop: The daemon's.
        listener: Bound and listening, for programs.
        inner_path: Where the ZeroMQ socket listens.
        admit: Returns the account of a newcomer, or None if it is turned away.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        inner_path: str,
        *,
        admit: Callable[[socket.socket], Account | None],
    ) -> None:
        self._loop = loop
        self._inner_path = inner_path
        self._admit = admit
        self._count = 0
        self._relays: dict[bytes, _Relay] = {}
        self._ended: dict[bytes, _Relay] = {}
        """Those that have ended, of which something is unheard."""
        self._acceptor = Acceptor(loop, listener, self._enter)
        self.use = self._acceptor.use

    def close(self) -> None:
        """Hang up on everybody."""
        self._acceptor.close()
        for name in list(self._relays):
            self.hang_up(name)

    def account(self, name: bytes) -> Account | None:
        """Return the account of a connection; None if it has ended."""
        relay = self._relays.get(name)
        return None if relay is None else relay.account

    def accounts(self) -> Iterator[tuple[bytes, Account]]:
        """Give the names and accounts of all connections, the oldest first."""
        return ((name, relay.account) for name, relay in self._relays.items())

    def heard(self, name: bytes, size: int) -> None:
        """The ZeroMQ socket has given a message of that connection, of *size* bytes."""
        if (relay := self._relays.get(name) or self._ended.get(name)) is not None:
            relay.unheard -= size

    def all_heard(self, name: bytes) -> bool:
        """Return whether all that a connection has said is heard; have what is there passed on."""
        if (relay := self._relays.get(name)) is not None:
            relay.pass_on()
        return (relay := self._relays.get(name) or self._ended.get(name)) is None or (
            relay.unheard <= 0 and not relay.waits
        )

    def hang_up(self, name: bytes) -> None:
        """End a connection; harmless if it has."""
        relay = self._relays.get(name)
        if relay is not None:
            relay.close()

    def _enter(self, connection: socket.socket) -> None:
        account = self._admit(connection)
        if account is None:
            connection.close()
            return
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            inner.setblocking(False)
            inner.connect(self._inner_path)
        except OSError:  # the backlog is full, or its file is gone; who comes tries again
            inner.close()
            connection.close()
            account.leave(DESCRIPTORS)
            return
        self._count += 1
        name = _NAME.pack(0, self._count)

        self._relays[name] = _Relay(
            self._loop, connection, inner, name, account, lambda: self._forget(name)
        )

    def _forget(self, name: bytes) -> None:
        relay = self._relays.pop(name)
        if relay.unheard > 0:
            self._ended[name] = relay
            self._loop.call_later(_REMEMBERED, partial(self._ended.__delitem__, name))


class _Relay:
    """Carries bytes between a program and the ZeroMQ socket, until either of them hangs up.

    What was said before that still arrives. At most a piece waits here in each direction.
    """

    def __init__(  # noqa: PLR0917 - what one is made of
        self,
        loop: Loop,
        program: socket.socket,
        inner: socket.socket,
        name: bytes,
        account: Account,
        on_end: Callable[[], None],
    ) -> None:
        self.account = account
        self.unheard = 0
        """Bytes in messages of the program that the ZeroMQ socket has not given yet."""
        self._loop = loop
        self._on_end = on_end
        self._open = True
        self._opening = zmtp.Opening(name)
        self._said, self._answered = zmtp.Bodies(), zmtp.Bodies()
        self._inner, self._program = _End(inner, self._inward), _End(program, self._outward)
        self._inner.other, self._program.other = self._program, self._inner
        self._ends = (self._inner, self._program)
        program.setblocking(False)
        for end in self._ends:
            self._watch(end)

    def _inward(self, data: bytes) -> bytes:
        self.unheard += self._said.count(data)
        return self._opening.pass_on(data)

    def _outward(self, data: bytes) -> bytes:
        self.account.messages.give(self._answered.count(data))
        return data

    @property
    def waits(self) -> bool:
        """Whether something of the program waits here."""
        return bool(self._inner.waiting)

    def pass_on(self) -> None:
        """Pass on what the program has said, as far as there is room for it."""
        while self._open and not (self.waits or self._program.ended):
            before = self.unheard
            self._ready(self._program, EVENT_READ)
            if self.unheard == before:
                return

    def close(self) -> None:
        """Hang up on both; harmless once more."""
        if not self._open:
            return
        self._open = False
        for end in self._ends:
            if end.watched:
                self._loop.remove(end.sock)
            end.sock.close()
        self.account.messages.give(self.account.messages.used)
        self.account.leave(DESCRIPTORS)
        self._on_end()

    def _ready(self, end: _End, events: int) -> None:
        try:
            if events & EVENT_WRITE:
                end.flush()
            if events & EVENT_READ:
                end.other.take_from(end)
        except (OSError, zmtp.ZmtpError):
            self.close()
            return
        if any(end.ended and not end.other.waiting for end in self._ends):
            self.close()
            return
        for each in self._ends:
            self._watch(each)

    def _watch(self, end: _End) -> None:
        events = EVENT_WRITE if end.waiting else 0
        if not (end.other.waiting or end.ended):
            events |= EVENT_READ
        if events == end.watched:
            return
        if not end.watched:
            self._loop.add(end.sock, events, lambda ready: self._ready(end, ready))
        elif events:
            self._loop.modify(end.sock, events)
        else:
            self._loop.remove(end.sock)
        end.watched = events


class _End:
    """One of a relay's two sockets, and what is on its way there."""

    other: _End

    def __init__(self, sock: socket.socket, through: Callable[[bytes], bytes]) -> None:
        """*through*: gives what of bytes for this end is sent."""
        self.sock = sock
        self.waiting = b""
        """What it has had no room for."""
        self.ended = False
        """Whether it says no more."""
        self.watched = 0
        """The events that the loop tells of."""
        self._through = through

    def take_from(self, other: _End) -> None:
        """Pass on what *other* says; raises OSError, ZmtpError."""
        try:
            data = other.sock.recv(_PIECE)
        except BlockingIOError:
            return
        other.ended = not data
        self.waiting += self._through(data)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room; raises OSError."""
        if self.waiting:
            with contextlib.suppress(BlockingIOError):
                self.waiting = self.waiting[self.sock.send(self.waiting) :]
