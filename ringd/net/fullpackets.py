"""Whether a member's port can be reached, and whether full packets get there.

A way on which large packets are lost (a *black hole*) lets a connection come up: its packets are
small. So more than a packet is sent, and the kernel asked whether it was acknowledged. What is sent
is the beginning of a handshake message, for the rest of which the other daemon waits; it is hung
up on before that is due, and neither ring nor links notice.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from ringd.host.tcp import link_socket, unacknowledged
from ringd.net.oserrors import describe
from ringd.wire.link.hello import MAGIC, MAX_MESSAGE, PREFIX, VERSION, Kind

_LOOK_EVERY = 0.01  # seconds


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of it.

    Attributes:
        seconds: How long the connection took to come up; None if it did not.
        error: Why it did not, in words; empty if it did.
        errno: The system's number for that; 0 where there is none.
        full: Whether full packets arrived; None where that was not to be found out.
    """

    seconds: float | None = None
    error: str = ""
    errno: int = 0
    full: bool | None = None


def reach(host: str, port: int, *, within: float) -> Reached:
    """Connect to *host*, an address, and send full packets, for *within* seconds each."""
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    family, _, _, _, address = info[0]
    began = time.monotonic()
    try:
        with link_socket(family, "system") as sock:
            sock.settimeout(within)
            sock.connect(address)
            seconds = time.monotonic() - began
            return Reached(seconds, full=_sends_full(sock, within))
    except TimeoutError:
        return Reached(error=f"no answer within {within:g} s")
    except OSError as error:
        return Reached(error=describe(error), errno=error.errno or 0)


def _sends_full(sock: socket.socket, within: float) -> bool | None:
    """Return whether full packets are acknowledged on *sock*."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = PREFIX.pack(MAGIC, VERSION, Kind.HELLO, MAX_MESSAGE)
    try:
        for part in (head, bytes(MAX_MESSAGE - 1)):
            sock.sendall(part)
            deadline = time.monotonic() + within
            while unacknowledged(sock):
                if time.monotonic() >= deadline:
                    return None if part is head else False
                time.sleep(_LOOK_EVERY)
    except OSError:  # it hung up: that is no ringd, or it has no room
        return None
    return True
