"""TCP sockets for links, and the one option of theirs that only Linux has."""

from __future__ import annotations

import contextlib
import socket
import sys

_WITHOUT_PACING = ("cubic", "reno")
"""Preferred first; a process without privileges may always choose reno."""


def link_socket(family: int, congestion: str) -> socket.socket:
    """Return a new TCP socket, of which links are made: by connecting, or by accepting.

    Args:
        family: ``socket.AF_INET`` or ``socket.AF_INET6``.
        congestion: ``"system"`` leaves the system's congestion control in place. ``"auto"``
            replaces bbr: it sends by timers, at a rate that it measures, which is for long
            lossy paths. Over loopback a ring of four carried a quarter less with it; over 1
            and 2.5 Gbit/s neither carried more than the other.

    Raises:
        OSError: No descriptor, or no such family here.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform == "linux" and congestion == "auto":
        # Before the connection is made: one that has begun to pace goes on with it.
        with contextlib.suppress(OSError):
            _avoid_pacing(sock)
    return sock


if sys.platform == "linux":

    def _avoid_pacing(sock: socket.socket) -> None:
        current = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        if not current.startswith(b"bbr"):
            return
        for name in _WITHOUT_PACING:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
                return
