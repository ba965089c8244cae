"""TCP sockets for links, and the one option of theirs that only Linux has."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios

_SO_NWRITE = 0x1024  # macOS; Python has no name for it
_TCP_NOTSENT_LOWAT = 25 if sys.platform == "linux" else 0x201  # likewise, for either

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


def keep_little_unsent(sock: socket.socket, most: int) -> None:
    """Have the system take no more than *most* bytes that it cannot send yet, about.

    By itself it takes some MiB, which wait before all that is written later. Linux then takes no
    more; macOS says only that there is no room.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, most)


def unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes the other side has not acknowledged; 0 where that cannot be told."""
    try:
        if sys.platform == "linux":
            return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    except OSError:
        return 0


def large_ping(host: str) -> str:
    """Return the command that sends *host* packets as large as Ethernet carries, unfragmented."""
    whole = "-M do" if sys.platform == "linux" else "-D"
    return f"ping {whole} -s 1472 {host}"


if sys.platform == "linux":

    def _avoid_pacing(sock: socket.socket) -> None:
        current = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        if not current.startswith(b"bbr"):
            return
        for name in _WITHOUT_PACING:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
                return
