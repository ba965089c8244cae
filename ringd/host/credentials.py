"""Who is on the other end of a Unix socket, and how long such a socket's path may be."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass

MACOS = sys.platform == "darwin"

MAX_SOCKET_PATH = 103 if MACOS else 107
"""Bytes in ``sockaddr_un.sun_path``, less the closing zero."""

# From macOS's <sys/un.h>; the socket module does not have all of them in every version.
_SOL_LOCAL = 0
_LOCAL_PEERCRED = 1
_LOCAL_PEERPID = 2
_XUCRED = struct.Struct("=IIhxx16I")  # version, uid, number of groups, groups

_UCRED = struct.Struct("=iII")  # Linux: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Credentials:
    """The process that opened a connection, in the kernel's word."""

    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket, *, macos: bool = MACOS) -> Credentials:
    """Return who connected *connection*, a Unix stream socket.

    Raises:
        OSError: the other end is gone already (macOS), or this is no Unix socket.
    """
    if macos:
        record = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size)
        pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
        _version, uid, count, *groups = _XUCRED.unpack(record)
        return Credentials(pid, uid, groups[0] if count > 0 else -1)
    if sys.platform == "linux":
        record = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return Credentials(*_UCRED.unpack(record))
    raise OSError(f"cannot tell the peer of a socket on {sys.platform}")


def check_socket_path(path: str, *, limit: int = MAX_SOCKET_PATH) -> None:
    """Make sure that *path*, and the longer names derived from it, fit a Unix socket address.

    Raises:
        ValueError: it is too long; says by how much and what to do.
    """
    length = len(os.fsencode(path))
    if length > limit:
        raise ValueError(
            f"the socket path {path!r} has {length} bytes, {length - limit} more than a Unix "
            f"socket can have here; choose a shorter one"
        )
