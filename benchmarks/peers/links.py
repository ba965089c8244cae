"""TCP connections round a ring, as bare programs make them."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from peers.slots import PATIENCE

_WITHOUT_PACING = ("cubic", "reno")
"""A floor takes the fastest: bbr sends by timers, which is slow on fast links."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a member listens for its left neighbour, and where its right one does."""

    own: tuple[str, int]
    right: tuple[str, int]


def connect(ends: Ends) -> tuple[socket.socket, socket.socket]:
    """Return the links to the left and to the right neighbour.

    Raises:
        TimeoutError: A neighbour has not come.
    """
    with socket.create_server(ends.own) as listener:
        _avoid_pacing(listener)  # which what it accepts inherits
        listener.settimeout(PATIENCE)
        right = _dial(ends.right)
        left, _ = listener.accept()
    for link in (left, right):
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return left, right


def _dial(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        sock = socket.socket()
        _avoid_pacing(sock)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return sock


def _avoid_pacing(sock: socket.socket) -> None:
    if not hasattr(socket, "TCP_CONGESTION"):
        return
    for name in _WITHOUT_PACING:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            return
