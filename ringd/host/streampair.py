"""Unix streams between a daemon and its programs: what differs between Linux and macOS."""

from __future__ import annotations

import contextlib
import socket

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""Flag for sending: an end that is gone is an error, and no SIGPIPE. Absent on macOS."""

_SO_NOSIGPIPE = 0x1022
"""The same for all that is sent, on macOS; Python has no name for it."""

_ROOM = 208 << 10
"""Bytes on their way, each way: what Linux gives by itself, and macOS only if it is asked."""


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends with room for some small calls; raises OSError where there are no files."""
    pair = socket.socketpair()
    for end in pair:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):  # more than the system allows
                end.setsockopt(socket.SOL_SOCKET, option, _ROOM)
        silence(end)
    return pair


def silence(stream: socket.socket) -> None:
    """Have no SIGPIPE come of *stream* where :data:`NO_SIGNAL` is none."""
    if not NO_SIGNAL:
        stream.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
