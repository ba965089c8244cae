"""Which user of this machine is at the other end of a connection over loopback."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

_TABLE = Path("/proc/self/net/tcp")

LINUX = sys.platform == "linux"


def peer_user(sock: socket.socket, *, linux: bool = LINUX, table: Path = _TABLE) -> int | None:
    """Return the number of the user whose process connected *sock*, an IPv4 connection.

    None where the system does not tell (macOS).

    Raises:
        OSError: The process has closed its end already, or the system's table cannot be read.
    """
    if not linux:
        return None
    wanted = f"{_hex(sock.getpeername())} {_hex(sock.getsockname())}"
    with table.open() as lines:
        for line in lines:
            _, _, rest = line.partition(": ")
            if rest.startswith(wanted):
                # State, queues, timer, retransmissions, user, timeout, inode; without an inode
                # nobody holds it any more, and the user is anybody's.
                fields = rest[len(wanted) :].split()
                if fields[6] != "0":
                    return int(fields[4])
    raise OSError("it has hung up already")


def _hex(address: tuple[str, int]) -> str:
    """Return an IPv4 address as the table has it: the four bytes as one number of this machine."""
    host, port = address
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
