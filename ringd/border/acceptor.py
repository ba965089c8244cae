"""Takes in who connects to a listening Unix socket."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ringd.loop import EVENT_READ, Loop

_ACCEPTS_PER_EVENT = 64
_ACCEPT_PAUSE = 0.5  # seconds, when descriptors have run out


class Acceptor:
    """Owns *listener*, and hands each connection to *on_connection*, whose it is then."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        on_connection: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._on_connection = on_connection
        self._watching = False
        self._closed = False
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Stop listening."""
        self._closed = True
        self._pause()
        self._listener.close()

    def use(self, listener: socket.socket) -> None:
        """Listen on *listener* from now on, in the place of the old one, which is closed."""
        self._pause()
        self._listener.close()
        self._listener = listener
        self._resume()

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS_PER_EVENT):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:
                # Out of descriptors: the newcomer stays in the backlog and would wake the
                # loop without end.
                self._pause()
                self._loop.call_later(_ACCEPT_PAUSE, self._resume)
                return
            self._on_connection(connection)

    def _pause(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove(self._listener)

    def _resume(self) -> None:
        if not (self._watching or self._closed):
            self._watching = True
            self._loop.add(self._listener, EVENT_READ, self._accept)
