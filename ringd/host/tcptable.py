"""What the system knows of TCP on this machine: who is at a connection's other end, who listens."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_NET = Path("/proc/self/net")

_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address it makes one of IPv6: many programs know only such sockets."""

_LISTENS = "0A"
_USER, _INODE = 4, 6
"""Fields of a line, behind the two addresses; the state is the first of them."""

LINUX = sys.platform == "linux"


def peer_user(sock: socket.socket, *, linux: bool = LINUX, net: Path = _NET) -> int | None:
    """Return the number of the user whose process connected *sock*, an IPv4 connection.

    None where the system does not tell, as macOS.

    Raises:
        OSError: The process has closed its end already, or Linux's table cannot be read.
    """
    if not linux:
        return None
    if not (net / "tcp").exists():
        raise OSError(f"{net / 'tcp'} is not there; mount /proc")
    peer, own = sock.getpeername(), sock.getsockname()
    for table, form in (("tcp", _as_ipv4), ("tcp6", _as_ipv6)):
        for fields in _lines(net / table, f"{form(*peer)} {form(*own)} "):
            # Without an inode nobody holds it any more, and the user is anybody's.
            if fields[_INODE] != "0":
                return int(fields[_USER])
    raise OSError("it has hung up already")


def is_listened_to(port: int, *, linux: bool = LINUX, net: Path = _NET) -> bool | None:
    """Whether somebody listens on *port* of IPv4's loopback; None where that cannot be told.

    Found out without connecting, which the one who listens would notice.
    """
    if not (linux and (net / "tcp").exists()):
        return None
    any4, any6 = "00000000", "0" * 32
    places = (
        ("tcp", f"{_as_ipv4('127.0.0.1', port)} {any4}:0000 "),
        ("tcp", f"{any4}:{port:04X} {any4}:0000 "),
        ("tcp6", f"{any6}:{port:04X} {any6}:0000 "),
    )
    return any(
        fields[0] == _LISTENS for table, place in places for fields in _lines(net / table, place)
    )


def _lines(table: Path, beginning: str) -> Iterator[list[str]]:
    """Give the fields behind *beginning* of the lines of a table that begin so.

    State, queues, timer, retransmissions, user, timeout, inode.
    """
    try:
        with table.open() as lines:
            for line in lines:
                _, _, rest = line.partition(": ")
                if rest.startswith(beginning):
                    yield rest[len(beginning) :].split()
    except FileNotFoundError:
        return  # a kernel without IPv6


def _as_ipv4(host: str, port: int) -> str:
    """Return an IPv4 address as the tables have it: four bytes as one number of this machine."""
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"


def _as_ipv6(host: str, port: int) -> str:
    words = struct.unpack("=4I", _MAPPED + socket.inet_aton(host))
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
