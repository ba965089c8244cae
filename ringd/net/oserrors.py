"""What the operating system says about a connection, in words."""

from __future__ import annotations

import errno
import os
import socket
import sys

_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset by peer",
    errno.EPIPE: "connection closed by peer",
    errno.ETIMEDOUT: "timed out",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
}

_ON_MACOS = {
    errno.EHOSTUNREACH: "no route to host: if ping works, macOS Local Network Privacy is blocking "
    "this program; run ringd as a launchd daemon",
    errno.ETIMEDOUT: "timed out: the machine is off, asleep or elsewhere, or its firewall drops "
    "what comes in",
    errno.ECONNREFUSED: "connection refused: the machine is there, and no ringd listens at that "
    "port yet",
}
"""Those of which people ask: 65, 60 and 61 there."""

DARWIN = sys.platform == "darwin"
"""Whether to explain errors as macOS means them."""


def describe(error: OSError) -> str:
    """Return *error* in words, with its number."""
    if isinstance(error, socket.gaierror):
        return f"cannot resolve the name: {error.strerror or error}"
    if error.errno is None:
        return str(error) or type(error).__name__
    if DARWIN and error.errno in _ON_MACOS:
        words = _ON_MACOS[error.errno]
    else:
        words = _WORDS.get(error.errno) or error.strerror or os.strerror(error.errno)
    return f"{words} (errno {error.errno})"
