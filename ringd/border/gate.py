"""The gate before the ZeroMQ socket: who comes in, and under which name.

libzmq ends the process when it accepts a connection for which there is no descriptor, lets each
client choose the name by which it is told from others, keeps whatever frames and commands come, and
says neither who has sent a message nor whether one was read. So connections are accepted here,
within the accounts of their users by the kernel's word, and what they say is checked and relayed to
the ZeroMQ socket, which listens where only this daemon's user can connect. The gate puts a name of
its own into each connection's first words.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from ringd.acceptor import Acceptor
from ringd.border.accounts import Account
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop, Timer
from ringd.wire.border import zmtp

DESCRIPTORS = 3
"""That a connection takes: accepted here, made to the ZeroMQ socket, and accepted there."""

_INWARD = 16 << 10  # bytes that are read in one go; each may have a few thousand frames
_OUTWARD = 64 << 10
# Frames of a program, then no more are read: libzmq keeps them. Some are of whole messages, and
# so are heard; else it would wait for ever, and its end would go unseen.
_MOST_UNHEARD = 2 * zmtp.MAX_FRAMES
_PER_TURN = 8  # pieces of programs, then all else in the daemon has its turn
_ENDS_WITHIN = 10.0  # seconds, in which the ZeroMQ socket takes what a program has said at its end
_REMEMBERED = 1.0  # seconds, for which something of one that has ended may be unheard
_NUMBER = struct.Struct(">Q")


class Gate:
    """Owns *listener*, and a relay for each connection.

    Args:
        loop: The daemon's.
        listener: Bound and listening, for programs.
        inner_path: Where the ZeroMQ socket listens.
        max_message: Bytes.
        admit: Returns the account of a newcomer, or None if it is turned away. Is given what parts
            with that connection, and how many the ZeroMQ socket may have yet to accept.
        leave: Called with the account of one that has ended.
        refused: Where those that speak something else are counted.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        inner_path: str,
        *,
        max_message: int,
        admit: Callable[[socket.socket, Callable[[], None], int], Account | None],
        leave: Callable[[Account], None],
        refused: Counter[str],
    ) -> None:
        self._loop = loop
        self._inner_path = inner_path
        self._max_message = max_message
        self._admit = admit
        self._leave = leave
        self._refused = refused
        self._prefix = os.urandom(8)  # so that nobody has a name before its time
        self._count = 0
        self._ungreeted: set[bytes] = set()
        """Connections that the ZeroMQ socket may have yet to accept."""
        self._relays: dict[bytes, _Relay] = {}
        self._ended: dict[bytes, _Relay] = {}
        """Those that have ended, of which something is unheard."""
        self._to_read: deque[_Relay] = deque()
        """Those whose programs have said something, in the order in which they are heard."""
        self._acceptor = Acceptor(loop, listener, self._enter)

    def use(self, listener: socket.socket) -> None:
        """Listen on *listener* from now on, in the place of the old one, which is closed."""
        self._acceptor.use(listener)

    def close(self) -> None:
        """Hang up on everybody."""
        self._acceptor.close()
        for name in list(self._relays):
            self.hang_up(name)

    def account(self, name: bytes) -> Account | None:
        """Return the account of a connection; None if it has ended."""
        relay = self._relays.get(name)
        return None if relay is None else relay.account

    def heard(self, name: bytes) -> None:
        """The ZeroMQ socket has given a frame of that connection."""
        if (relay := self._relays.get(name) or self._ended.get(name)) is not None:
            relay.hear()

    def all_heard(self, name: bytes) -> bool:
        """Return whether all that the program behind a connection has said, and will say, is heard.

        While the connection is open, more may come: libzmq sends in a thread of its own.
        """
        if (relay := self._relays.get(name)) is not None:
            relay.pass_on()
        if (relay := self._relays.get(name)) is not None and not relay.program_ended:
            return False
        relay = relay or self._ended.get(name)
        return relay is None or relay.all_heard

    def hang_up(self, name: bytes) -> None:
        """End a connection; harmless if it has."""
        relay = self._relays.get(name)
        if relay is not None:
            relay.close()

    def read_soon(self, relay: _Relay) -> None:
        """Have a piece of what a program has said read when it is its turn."""
        if not self._to_read:
            self._loop.call_soon(self._read)
        self._to_read.append(relay)

    def count_stranger(self) -> None:
        """Count one that says what it may not."""
        self._refused["protocol"] += 1

    def _read(self) -> None:
        for _ in range(min(_PER_TURN, len(self._to_read))):
            self._to_read.popleft().read()
        if self._to_read:
            self._loop.call_soon(self._read)

    def _enter(self, connection: socket.socket, _address: object) -> None:
        self._count += 1
        name = self._prefix + _NUMBER.pack(self._count)
        to_accept = len(self._ungreeted)
        account = self._admit(connection, partial(self.hang_up, name), to_accept)
        if account is None:
            connection.close()
            return
        try:
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                inner.setblocking(False)
                inner.connect(self._inner_path)
            except OSError:
                inner.close()
                raise
        except OSError:  # no descriptor, the backlog is full, its file is gone: it may come again
            connection.close()
            self._leave(account)
            return
        program = zmtp.Program(name, self._max_message)
        self._ungreeted.add(name)
        self._relays[name] = relay = _Relay(
            self,
            self._loop,
            connection,
            inner,
            program,
            account,
            on_greeted=partial(self._ungreeted.discard, name),
            on_end=partial(self._forget, name),
        )
        relay.watch_both()

    def _forget(self, name: bytes) -> None:
        relay = self._relays.pop(name)
        self._ungreeted.discard(name)
        self._leave(relay.account)
        if not relay.all_heard:
            self._ended[name] = relay
            self._loop.call_later(_REMEMBERED, partial(self._ended.__delitem__, name))


class _Relay:
    """Carries bytes between a program and the ZeroMQ socket, until either of them hangs up.

    What a program has said before that still arrives. At most a piece waits here in each direction.
    """

    def __init__(  # noqa: PLR0917 - what one is made of
        self,
        gate: Gate,
        loop: Loop,
        program: socket.socket,
        inner: socket.socket,
        said: zmtp.Program,
        account: Account,
        *,
        on_greeted: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.account = account
        self._heard = 0
        """Frames of the program that the ZeroMQ socket has given."""
        self._gate = gate
        self._loop = loop
        self._said = said
        self._answers = zmtp.from_socket()
        self._on_greeted = on_greeted
        self._on_end = on_end
        self._open = True
        self._queued = False
        """Whether it has its turn to read."""
        self._last_moment: Timer | None = None
        """When it is closed, whatever is unheard, once the program has ended."""
        self._program, self._inner = _End(program), _End(inner)
        program.setblocking(False)

    @property
    def program_ended(self) -> bool:
        """Whether the program has ended the connection."""
        return self._program.ended

    @property
    def all_heard(self) -> bool:
        """Whether the ZeroMQ socket has given all that the program has said, as far as is known."""
        return self._heard >= self._said.frames and not self._inner.waiting

    @property
    def _full(self) -> bool:
        """Whether no more of the program is to be read now."""
        unheard = self._said.frames - self._heard
        return bool(self._inner.waiting) or unheard >= _MOST_UNHEARD

    def hear(self) -> None:
        """The ZeroMQ socket has given one more frame of the program."""
        self._heard += 1
        if self._open:
            self.watch_both()

    def read(self) -> None:
        """Take in a piece of what the program has said."""
        self._queued = False
        if self._open and not self._full:
            self._guarded(self._take_inward)

    def pass_on(self) -> None:
        """Pass on what the program has said, as far as there is room for it."""
        while self._open and not (self._full or self._program.ended):
            before = self._said.frames
            self._guarded(self._take_inward)
            if self._said.frames == before:
                return

    def close(self) -> None:
        """Hang up on both; harmless once more."""
        if not self._open:
            return
        self._open = False
        if self._last_moment is not None:
            self._last_moment.cancel()
        for end in (self._program, self._inner):
            end.watch(self._loop, 0, None)
            end.sock.close()
        self.account.messages.give(self.account.messages.used)
        self._on_end()

    def _ready(self, end: _End, events: int) -> None:
        self._guarded(partial(self._serve, end, events))

    def _guarded(self, act: Callable[[], None]) -> None:
        """Act, and hang up if it turns out that this is over."""
        try:
            act()
        except OSError:
            self.close()
        except zmtp.ZmtpError:
            self._gate.count_stranger()
            self.close()
        else:
            self._go_on()

    def _serve(self, end: _End, events: int) -> None:
        if events & EVENT_WRITE:
            end.flush()
        if events & EVENT_READ and end is self._inner:
            self._take_outward()
        elif events & EVENT_READ and not self._queued:
            self._queued = True
            self._gate.read_soon(self)

    def _take_inward(self) -> None:
        self._inner.send(self._said.pass_on(self._program.read(_INWARD)))

    def _take_outward(self) -> None:
        data = self._inner.read(_OUTWARD)
        self._on_greeted()
        self.account.messages.give(self._answers.count(data))
        self._program.send(data)

    def _go_on(self) -> None:
        if not self._open:
            return
        if self._inner.ended and not self._program.waiting:
            self.close()
            return
        if self._program.ended and self._last_moment is None:
            self._last_moment = self._loop.call_later(_ENDS_WITHIN, self.close)
        if self._program.ended and not (self._inner.waiting or self._inner.shut):
            # Not closed: libzmq would not read what it has had no room for.
            self._inner.shut = True
            with contextlib.suppress(OSError):
                self._inner.sock.shutdown(socket.SHUT_WR)
        self.watch_both()

    def watch_both(self) -> None:
        """Wait for what either of them has next; hang up where the system cannot watch more."""
        full = {self._program: self._full, self._inner: bool(self._program.waiting)}
        try:
            for end, no_more in full.items():
                events = EVENT_WRITE if end.waiting else 0
                if not (no_more or end.ended):
                    events |= EVENT_READ
                end.watch(self._loop, events, partial(self._ready, end))
        except OSError:
            self.close()


class _End:
    """One of a relay's two sockets, and what is on its way there."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waiting = b""
        """What it has had no room for."""
        self.ended = False
        """Whether it says no more."""
        self.shut = False
        """Whether nothing more is said to it."""
        self._watched = 0

    def read(self, most: int) -> bytes:
        """Return what it says, if there is something; raises OSError."""
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return b""
        except ConnectionError:
            data = b""
        self.ended = not data
        return data

    def send(self, data: bytes) -> None:
        """Send *data*, or keep what there is no room for; raises OSError."""
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room; raises OSError."""
        if not self.waiting:
            return
        try:
            self.waiting = self.waiting[self.sock.send(self.waiting) :]
        except BlockingIOError:
            pass
        except ConnectionError:  # what it has said before that is yet to be read
            self.waiting = b""

    def watch(self, loop: Loop, events: int, ready: Callable[[int], None] | None) -> None:
        """Have *ready* called for these *events* from now on; for none if there are none."""
        if events == self._watched:
            return
        if not events or ready is None:
            loop.remove(self.sock)
        elif self._watched:
            loop.modify(self.sock, events)
        else:
            loop.add(self.sock, events, ready)
        self._watched = events
