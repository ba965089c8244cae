"""Takes in who connects to a listening socket, as fast as there is room for them.

Where there is none, newcomers wait in the system for a moment: the socket stays readable, and to
look at it again at once would be a busy loop.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

from ringd.loop import EVENT_READ, Loop, Timer

PAUSE = 0.1
"""Seconds without accepting when there is nothing to accept with."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """Owns *listener*.

    Args:
        loop: Where it runs.
        listener: Bound and listening.
        on_connection: Takes each connection, whose it is then, and the address from which it came.
        per_event: How many are taken in before all else has its turn.
        rests_for: Asked before each: seconds for which nobody is taken in; 0 or less, somebody is.
        make_room: Called with the error when there was no descriptor for one, or no memory; returns
            whether to try again at once.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        on_connection: Callable[[socket.socket, Any], None],
        *,
        per_event: int = 64,
        rests_for: Callable[[], float] = lambda: 0.0,
        make_room: Callable[[OSError], bool] = lambda _error: False,
    ) -> None:
        self.listener = listener
        self._loop = loop
        self._on_connection = on_connection
        self._per_event = per_event
        self._rests_for = rests_for
        self._make_room = make_room
        self._resting: Timer | None = None
        self._closed = False
        self._listen()

    def close(self) -> None:
        """Stop listening; harmless once more."""
        if not self._closed:
            self._closed = True
            self._hang_up()

    def use(self, listener: socket.socket) -> None:
        """Listen on *listener* from now on, in the place of the old one, which is closed."""
        self._hang_up()
        self.listener = listener
        self._listen()

    def accept_one(self) -> bool:
        """Take in whoever stands there first; return whether there was anybody."""
        if self._closed:
            return False
        try:
            connection, address = self.listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _EXHAUSTED or self._make_room(error):
                return True  # it is gone already, or has its turn again
            self._rest(PAUSE)
            return False
        self._on_connection(connection, address)
        return True

    def _accept(self, _events: int) -> None:
        for _ in range(self._per_event):
            if (seconds := self._rests_for()) > 0:
                self._rest(seconds)
                return
            if not self.accept_one():
                return

    def _rest(self, seconds: float) -> None:
        if self._resting is None:
            self._loop.remove(self.listener)
            self._resting = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._resting = None
        self._loop.add(self.listener, EVENT_READ, self._accept)

    def _listen(self) -> None:
        self.listener.setblocking(False)
        self._go_on()

    def _hang_up(self) -> None:
        if self._resting is None:
            self._loop.remove(self.listener)
        else:
            self._resting.cancel()
            self._resting = None
        self.listener.close()
