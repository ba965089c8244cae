"""A loopback port at which programs of this machine are let in."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from ringd.errors import RingError
from ringd.forward.connection import LOOPBACK
from ringd.host.tcptable import peer_user
from ringd.loop import EVENT_READ, Loop

_BACKLOG = 128
_ACCEPTS_PER_EVENT = 16
_ACCEPT_PAUSE = 0.5  # seconds, when descriptors have run out


class Door:
    """Listens when made, at 127.0.0.1.

    Args:
        loop: Where it runs.
        port: The port; 0 for any that is free.
        may_enter: Whether the user of this number may connect. It is asked where the system tells
            who connects, which is on Linux.
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
        may_enter: Callable[[int], bool],
        on_connection: Callable[[socket.socket], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._may_enter = may_enter
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

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS_PER_EVENT):
            if self._closed:
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:
                # Out of descriptors: the newcomer stays in the backlog, and would wake the loop
                # without end.
                self._pause()
                self._loop.call_later(_ACCEPT_PAUSE, self._resume)
                return
            if refusal := self._refusal(sock):
                sock.close()
                self._on_refused(refusal)
            else:
                self._on_connection(sock)

    def _refusal(self, sock: socket.socket) -> str:
        """Return why whoever connected is turned away; empty if they are not."""
        try:
            uid = peer_user(sock)
        except OSError as error:
            return f"who connected to port {self.port} cannot be found out: {error}"
        if uid is None or self._may_enter(uid):
            return ""
        return f"user {uid} may not use port {self.port}"

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
