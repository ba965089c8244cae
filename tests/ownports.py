"""Ports for the daemons and servers of tests: this process's own, and none twice in a row.

One on which nobody listens may be that of a daemon which is about to start, or to come back: here,
beside another worker, or in another run of the tests on this machine. So each process claims a
block of ports, and goes round in it.
"""

from __future__ import annotations

import functools
import itertools
import socket
from collections.abc import Iterator

BLOCK = 250
BLOCKS = range(10_000, 20_000, BLOCK)
"""Below those that the commands under test choose from, and those of outgoing connections."""


def _bound(port: int) -> socket.socket | None:
    """Return a socket that has *port* of loopback; None if that cannot be had."""
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        return None
    return sock


@functools.cache
def claimed() -> tuple[socket.socket, Iterator[int]]:
    """Return the other ports of the first block whose first one is free, and what holds that."""
    for first in BLOCKS:
        if claim := _bound(first):
            return claim, itertools.cycle(range(first + 1, first + BLOCK))
    raise OSError("all ports for tests are claimed")


def free_ports(count: int) -> list[int]:
    """Return *count* ports of loopback that nobody has now, and that nobody else will take."""
    _, own = claimed()
    found: list[int] = []
    for port in itertools.islice(own, BLOCK - 1):
        if sock := _bound(port):
            sock.close()
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"{count} free ports are needed, and there are {len(found)}")
