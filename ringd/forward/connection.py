"""A program's TCP connection, whose bytes go through a stream."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ringd.host.tcp import unacknowledged
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.streams.end import End
from ringd.streams.table import Refusal, Table

LOOPBACK = "127.0.0.1"

LOOK_AGAIN = 0.05
"""Seconds."""

TAKE_WITHIN = 5.0
"""Seconds, that a program's system gets to take in what came before a reset."""

_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time
_FIN_ON_CLOSE = struct.pack("ii", 0, 0)


@dataclass(frozen=True, slots=True)
class Target:
    """A port of loopback that a stream leads to."""

    port: int
    may_dial: Callable[[], bool] | None = None
    """Asked every :data:`LOOK_AGAIN` until it is true and somebody listens; it raises
    :class:`~ringd.streams.table.Refusal` when that is in vain. The stream is answered only then.
    None: dial once, at once."""
    on_connected: Callable[[], None] | None = None
    """Called when somebody has let it in."""


class Connection:
    """The outlet of one end, which :meth:`begin` or :meth:`dial` is given.

    It is read only as far as the other end's program takes what was read, and its own slowness
    is told to the other end the same way.

    Args:
        loop: Where it runs.
        table: The end's.
        on_wait: Called when nobody is there yet at the other end; returns whether to wait for
            that. None: never.
        on_reset: Told the stream's end here, and why it was ended at the other one.
    """

    def __init__(
        self,
        loop: Loop,
        table: Table,
        *,
        on_wait: Callable[[], bool] | None = None,
        on_reset: Callable[[End, str], None],
    ) -> None:
        self.end: End
        self._loop = loop
        self._table = table
        self._sock: socket.socket | None = None
        self._target: Target | None = None  # until it is connected to that
        self._on_wait = on_wait
        self._on_reset = on_reset
        self._events = 0  # that the loop watches for
        self._over = False  # the stream is; what came of it may have yet to be taken
        self._over_at = 0.0  # when that was
        self._shut = False  # the program was told that nothing more comes
        self._open = True

    def begin(self, end: End, sock: socket.socket) -> None:
        """Serve as the outlet of *end* with *sock*, which is connected."""
        self.end = end
        self._own(sock)
        self._watch()

    def dial(self, end: End, target: Target) -> None:
        """Serve as the outlet of *end*, with a connection to *target*."""
        self.end = end
        self._target = target
        self._loop.call_soon(self._dial)

    def _own(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        # Whatever ends this process, nobody takes a part of a stream for the whole.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        with contextlib.suppress(OSError):  # it is gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _dial(self) -> None:
        target = self._target
        if target is None or not self._open:
            return
        try:
            if target.may_dial is not None and not target.may_dial():
                self._loop.call_later(LOOK_AGAIN, self._dial)
                return
            self._own(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        except Refusal as refusal:
            self.abort(str(refusal))
            return
        except OSError as error:
            self.abort(f"port {target.port} cannot be dialed: {error.strerror}")
            return
        assert self._sock is not None  # noqa: S101 - it is owned
        number = self._sock.connect_ex((LOOPBACK, target.port))
        if number in (0, errno.EINPROGRESS):
            self._watch()
        else:
            self._not_connected(number)

    def _not_connected(self, number: int) -> None:
        """Dialing has failed, with this number of the system's."""
        target = self._target
        assert target is not None  # noqa: S101 - it is what was dialed
        if target.may_dial is None or number != errno.ECONNREFUSED:
            text = f"nothing takes connections on port {target.port}: {os.strerror(number)}"
            self.abort(text)
            return
        self._let_go()
        self._loop.call_later(LOOK_AGAIN, self._dial)

    # --- as the outlet ----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the program is there, or is not waited for."""
        return self._target is None or self._target.may_dial is None

    def more(self) -> None:
        """Give the program what has come."""
        if self._open and self._target is None:
            self._give()
            self._watch()

    def reset(self, reason: str) -> None:
        """Reset the program's connection, once it has taken what came before that."""
        if self.ready:  # else it had yet to begin
            self._on_reset(self.end, reason)
        self._over, self._over_at = True, self._loop.now()
        if self._open and (self._target is None or self.end.inbox):
            self._watch()
        else:
            self._close(abruptly=True)

    def waits(self) -> bool:
        """Whether to wait for somebody to be at the other end."""
        return self._on_wait is not None and self._on_wait()

    # --- the socket -------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """End the stream at both ends."""
        self._table.reset(self.end, reason)
        self._close(abruptly=True)

    def _ready(self, events: int) -> None:
        sock = self._sock
        if self._target is not None and sock is not None:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number and _is_its_own_peer(sock):
                number = errno.ECONNREFUSED
            if number:
                self._not_connected(number)
                return
            self._connected(self._target)
        if events & EVENT_WRITE and self._open:
            self._give()
        if events & EVENT_READ and self._open:
            self._take()
        if self._open:
            self._watch()

    def _connected(self, target: Target) -> None:
        self._target = None
        if target.on_connected is not None:
            target.on_connected()
        self._table.answer(self.end)

    def _take(self) -> None:
        """Read what the program says, as far as there is room for it."""
        end, sock = self.end, self._sock
        room = end.room
        if room <= 0 or sock is None:
            return
        try:
            data = sock.recv(room)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"the program's connection broke: {error.strerror}")
            return
        if data:
            end.write(data)
        else:
            end.close()
        self._table.proceed(end)

    def _give(self) -> None:
        """Write what came for the program, as far as it takes it."""
        end, sock, given = self.end, self._sock, 0
        if sock is None:
            return
        try:
            while end.inbox:
                sent = sock.send(end.inbox[0])
                end.taken(sent)
                given += sent
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(f"the program's connection broke: {error.strerror}")
            return
        if given and not self._over:
            self._table.proceed(end)
        if end.other_closed and not (end.inbox or self._shut):
            self._shut = True
            with contextlib.suppress(OSError):  # it is gone, which is found out elsewhere
                sock.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Watch for what can be done next, or close the socket when nothing can."""
        end = self.end
        if self._over and not end.inbox:
            self._reset_when_taken()
            return
        if end.closed and self._shut:
            self._close(abruptly=False)
            return
        if self._target is not None:
            events = EVENT_WRITE
        else:
            reads = end.room > 0 and not self._over
            events = (EVENT_READ if reads else 0) | (EVENT_WRITE if end.inbox else 0)
        if events == self._events or self._sock is None:
            return
        if not events:
            self._loop.remove(self._sock)
        elif self._events:
            self._loop.modify(self._sock, events)
        else:
            self._loop.add(self._sock, events, self._ready)
        self._events = events

    def _reset_when_taken(self) -> None:
        """Reset the connection once its other side has what was written: what it lacks is dropped.

        As with TCP, what stands there it can still read.
        """
        if self._sock is None or not self._open:
            return
        if self._events:
            self._events = 0
            self._loop.remove(self._sock)
        if self._late() or not unacknowledged(self._sock):
            self._close(abruptly=not self._shut)
        else:
            self._loop.call_later(LOOK_AGAIN, self._reset_when_taken)

    def _late(self) -> bool:
        """Whether the program has had its time to take what came before the reset."""
        return self._loop.now() >= self._over_at + TAKE_WITHIN

    def _let_go(self, *, abruptly: bool = False) -> None:
        """Close the socket, if there is one."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._events:
            self._events = 0
            self._loop.remove(sock)
        if not abruptly:
            with contextlib.suppress(OSError):  # macOS: of one that is gone
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)
        sock.close()

    def _close(self, *, abruptly: bool) -> None:
        if self._open:
            self._open = False
            self._let_go(abruptly=abruptly)


def _is_its_own_peer(sock: socket.socket) -> bool:
    """Whether *sock*, which had the port that it dialed by chance, is connected to itself."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # it has ended already
        return False
