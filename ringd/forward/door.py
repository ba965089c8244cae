"""A loopback port at which programs of this machine are let in."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from ringd.acceptor import Acceptor
from ringd.errors import RingError
from ringd.forward.connection import LOOPBACK
from ringd.forward.doorkeeper import Doorkeeper
from ringd.loop import Loop

_BACKLOG = 128


class Door:
    """Listens when made, at 127.0.0.1.

    Args:
        loop: Where it runs.
        port: The port; 0 for any that is free.
        keeper: Knows who may enter; the same for all doors.
        on_connection: Takes each connection.
        on_refused: Told why somebody was turned away.

    Raises:
        RingError: The port cannot be had.
    """

    def __init__(
        self,
        loop: Loop,
        port: int,
        *,
        keeper: Doorkeeper,
        on_connection: Callable[[socket.socket], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._keeper = keeper
        self._on_connection = on_connection
        self._on_refused = on_refused
        listener = _listen(port)
        self.port: int = listener.getsockname()[1]
        # One at a time: it takes long to find out who that is.
        self._acceptor = Acceptor(
            loop, listener, self._look_at, per_event=1, rests_for=lambda: keeper.rests_for
        )

    def close(self) -> None:
        """Let nobody in any more."""
        self._acceptor.close()

    def close_behind(self) -> None:
        """Close, behind those who stand there already: they think that they are in."""
        for _ in range(_BACKLOG):  # others may come without end
            if not self._acceptor.accept_one():
                break
        self.close()

    def _look_at(self, sock: socket.socket, _address: object) -> None:
        if refusal := self._keeper.refusal(sock, self.port):
            sock.close()
            self._on_refused(refusal)
        else:
            self._on_connection(sock)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        text = f"cannot listen on {LOOPBACK}:{port}: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            text += "; another program has that port: end it, or choose another one"
        elif error.errno == errno.EACCES:
            text += "; choose a port above 1023"
        raise RingError(text) from error
    return listener
