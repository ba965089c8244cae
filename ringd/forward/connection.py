"""A program's TCP connection, whose bytes go through a stream."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from ringd.loop import EVENT_READ, EVENT_WRITE, Loop
from ringd.streams.end import End
from ringd.streams.table import Table

LOOPBACK = "127.0.0.1"

_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class Connection:
    """The outlet of one end, which :meth:`begin` is given; owns *sock*.

    It is read only as far as the other end's program takes what was read, and its own slowness
    is told to the other end the same way.

    Args:
        loop: Where it runs.
        table: The end's.
        sock: Connected, or (*dialing*) about to be.
        dialing: Why the stream is over if it cannot be connected, less the system's word; empty
            for one that is connected.
        on_wait: Told, again and again, why nobody is there yet at the other end; None: the
            connection is reset then.
        on_reset: Told why the stream was ended at its other end.
        on_gone: Called once, when the socket is closed.
    """

    def __init__(
        self,
        loop: Loop,
        table: Table,
        sock: socket.socket,
        *,
        dialing: str = "",
        on_wait: Callable[[str], None] | None = None,
        on_reset: Callable[[str], None],
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.end: End
        self._loop = loop
        self._table = table
        self._sock = sock
        self._dialing = dialing
        self._on_wait = on_wait
        self._on_reset = on_reset
        self._on_gone = on_gone
        self._events = 0  # that the loop watches for
        self._shut = False  # the program was told that nothing more comes
        self._open = True
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # it is gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, end: End) -> None:
        """Serve as the outlet of *end* from now on."""
        self.end = end
        self._watch()

    # --- as the outlet ----------------------------------------------------------------

    def more(self) -> None:
        """Give the program what has come."""
        if self._open and not self._dialing:
            self._give()
            self._watch()

    def reset(self, reason: str) -> None:
        """Reset the program's connection; for the reason a socket has no words."""
        self._on_reset(reason)
        self._close(abruptly=True)

    def waits(self, reason: str) -> bool:
        """Whether to wait for somebody to be at the other end."""
        if self._on_wait is None:
            return False
        self._on_wait(reason)
        return True

    # --- the socket -------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """End the stream at both ends."""
        self._table.reset(self.end, reason)
        self._close(abruptly=True)

    def _ready(self, events: int) -> None:
        if self._dialing:
            self._connected()
        if events & EVENT_WRITE and self._open:
            self._give()
        if events & EVENT_READ and self._open:
            self._take()
        if self._open:
            self._watch()

    def _connected(self) -> None:
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        dialing, self._dialing = self._dialing, ""
        if number:
            self.abort(f"{dialing}: {os.strerror(number)}")

    def _take(self) -> None:
        """Read what the program says, as far as there is room for it."""
        end = self.end
        room = end.room
        if room <= 0:
            return
        try:
            data = self._sock.recv(room)
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
        end, given = self.end, 0
        try:
            while end.inbox:
                sent = self._sock.send(end.inbox[0])
                end.taken(sent)
                given += sent
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(f"the program's connection broke: {error.strerror}")
            return
        if given:
            self._table.proceed(end)
        if end.other_closed and not (end.inbox or self._shut):
            self._shut = True
            with contextlib.suppress(OSError):  # it is gone, which is found out elsewhere
                self._sock.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Watch for what can be done next, or close the socket when nothing can."""
        end = self.end
        if end.closed and self._shut:
            self._close(abruptly=False)
            return
        if self._dialing:
            events = EVENT_WRITE
        else:
            events = (EVENT_READ if end.room > 0 else 0) | (EVENT_WRITE if end.inbox else 0)
        if events == self._events:
            return
        if not events:
            self._loop.remove(self._sock)
        elif self._events:
            self._loop.modify(self._sock, events)
        else:
            self._loop.add(self._sock, events, self._ready)
        self._events = events

    def _close(self, *, abruptly: bool) -> None:
        if not self._open:
            return
        self._open = False
        if self._events:
            self._loop.remove(self._sock)
        if abruptly:
            with contextlib.suppress(OSError):  # macOS: of one that is gone
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self._sock.close()
        self._on_gone()
