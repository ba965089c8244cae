"""A loopback port at which programs of this machine are let in."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from ringd.errors import RingError
from ringd.forward.connection import LOOPBACK
from ringd.forward.doorkeeper import Doorkeeper
from ringd.loop import EVENT_READ, Loop

_BACKLOG = 128
_ACCEPT_PAUSE = 0.5  # seconds, when descriptors have run out


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
        self._loop = loop
        self._keeper = keeper
        self._on_connection = on_connection
        self._on_refused = on_refused
        self._listener = _listen(port)
        self._watching = False
        self._closed = False
        self.port: int = self._listener.getsockname()[1]
        self._resume()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True
        self._pause()
        self._listener.close()

    def close_behind(self) -> None:
        """Close, behind those who stand there already: they think that they are in."""
        for _ in range(_BACKLOG):  # others may come without end
            if self._closed or not self._let_one_in():
                break
        self.close()

    def _accept(self, _events: int) -> None:
        if (rests_for := self._keeper.rests_for) > 0:
            self._wait(rests_for)
        else:
            self._let_one_in()

    def _let_one_in(self) -> bool:
        """Let in, or turn away, whoever stands there first; return whether there was anybody."""
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except ConnectionError:  # it is gone again
            return True
        except OSError:
            # Out of descriptors: the newcomer stays in the backlog, and would wake the loop
            # without end.
            self._wait(_ACCEPT_PAUSE)
            return False
        if refusal := self._keeper.refusal(sock, self.port):
            sock.close()
            self._on_refused(refusal)
        else:
            self._on_connection(sock)
        return True

    def _wait(self, seconds: float) -> None:
        """Accept nobody for a moment; those who come wait in the system."""
        self._pause()
        self._loop.call_later(seconds, self._resume)

    def _pause(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove(self._listener)

    def _resume(self) -> None:
        if not (self._watching or self._closed):
            self._watching = True
            self._loop.add(self._listener, EVENT_READ, self._accept)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        text = f"cannot listen on {LOOPBACK}:{port}: {error.strerror}"
        if error.errno == errno.EADDRINUSE:
            text += "; another program has that port: end it, or choose another one"
        elif error.errno == errno.EACCES:
            text += "; choose a port above 1023"
        raise RingError(text) from error
    return listener
