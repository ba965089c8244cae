"""Ports for daemons that are started for a while on this machine: a demo, an example, a test."""

from __future__ import annotations

import contextlib
import random
import socket

_CANDIDATES = range(20000, 32000)
"""Below those that systems take for outgoing connections (Linux from 32768, macOS from 49152): one
of these could take the port of a daemon that is away for a moment."""


def free_ports(count: int) -> list[int]:
    """Return *count* ports on loopback that nobody listens on now.

    Raises:
        OSError: there are not that many.
    """
    found: list[int] = []
    for port in random.sample(_CANDIDATES, len(_CANDIDATES)):
        if len(found) == count:
            break
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            found.append(port)
    if len(found) < count:
        raise OSError(f"{count} free ports are needed, and there are {len(found)}")
    return found
