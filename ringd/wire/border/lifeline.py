"""What crosses a lifeline: the plain Unix stream beside a client's ZeroMQ connection.

The daemon opens with a token (:data:`ringd.wire.border.messages.TOKEN_BYTES`), which carries the
descriptor of the client's call socket (:mod:`ringd.wire.border.stream`), or with :data:`REFUSED`
and the reason, in UTF-8 to the end of the stream, when it takes nobody in. After
the token the client speaks in records of fixed size that introduce and withdraw its memory
segments; a record that adds a segment carries its descriptor (SCM_RIGHTS). The daemon says who the
client's peers are, for whatever was sent here arrives even if the sender dies. The end of the
stream is the end of the client, or of the daemon. A client that hangs up and lives on says so
first. One that wants to be told of losses at once asks for signs of life; each beat is answered by
the record that says nothing.
"""

from __future__ import annotations

import struct

from ringd.wire.text import capped

ADD = 1
DROP = 2
PART = 3
BEAT = 4

SUFFIX = ".life"
"""Appended to the path of the ZeroMQ socket."""

REFUSED = bytes(16)
"""In the place of a token, which is never this."""

MAX_REASON = 1024
"""Bytes of the reason."""

_RECORD = struct.Struct("<BxxxIQ")
RECORD_BYTES = _RECORD.size

_SESSION = struct.Struct("<QHB")


def pack_refusal(reason: str) -> bytes:
    """Return what the daemon opens with when it hangs up at once, for *reason*."""
    return REFUSED + capped(reason, MAX_REASON)


def pack(operation: int, segment: int, size: int) -> bytes:
    """Return the record for *operation* on the client's segment number *segment*."""
    return _RECORD.pack(operation, segment, size)


def unpack(record: bytes) -> tuple[int, int, int]:
    """Return (operation, segment, size) of a record of :data:`RECORD_BYTES` bytes.

    Raises:
        ValueError: the operation is unknown.
    """
    operation, segment, size = _RECORD.unpack(record)
    if operation not in (ADD, DROP, PART, BEAT):
        raise ValueError(f"unknown lifeline operation {operation}")
    return operation, segment, size


def pack_session(join_id: int, session: tuple[int, ...], places: tuple[int, ...] = ()) -> bytes:
    """Return the record that tells a client its session: join ids, and members, by rank.

    *places*: the members of the ring on which they are; empty where each rank is on the member of
    its number.
    """
    size = len(session)
    head = _SESSION.pack(join_id, size, 1 if places else 0)
    return head + struct.pack(f"<{size}Q{len(places)}H", *session, *places)


NOTHING = pack_session(0, ())
"""Look at your messages; or: I am here."""


def take_session(stream: bytearray) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Take the first record off *stream* and return it: (join id, session, places).

    None, and *stream* as it was, when the record is not complete.
    """
    if len(stream) < _SESSION.size:
        return None
    join_id, size, placed = _SESSION.unpack_from(stream)
    layout = struct.Struct(f"<{size}Q{size if placed else 0}H")
    end = _SESSION.size + layout.size
    if len(stream) < end:
        return None
    values = layout.unpack_from(stream, _SESSION.size)
    del stream[:end]
    return join_id, values[:size], values[size:]
