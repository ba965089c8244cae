"""What crosses a lifeline: the plain Unix stream beside a client's ZeroMQ connection.

The daemon opens with a token (:data:`ringd.wire.border.TOKEN_BYTES`). After that only the
client speaks, in records of fixed size that introduce and withdraw its memory segments; a
record that adds a segment carries its descriptor (SCM_RIGHTS). The end of the stream is the
end of the client, or of the daemon.
"""

from __future__ import annotations

import struct

ADD = 1
DROP = 2

SUFFIX = ".life"
"""Appended to the path of the ZeroMQ socket."""

_RECORD = struct.Struct("<BxxxIQ")
RECORD_BYTES = _RECORD.size


def pack(operation: int, segment: int, size: int) -> bytes:
    """Return the record for *operation* on the client's segment number *segment*."""
    return _RECORD.pack(operation, segment, size)


def unpack(record: bytes) -> tuple[int, int, int]:
    """Return (operation, segment, size) of a record of :data:`RECORD_BYTES` bytes.

    Raises:
        ValueError: the operation is unknown.
    """
    operation, segment, size = _RECORD.unpack(record)
    if operation not in (ADD, DROP):
        raise ValueError(f"unknown lifeline operation {operation}")
    return operation, segment, size
