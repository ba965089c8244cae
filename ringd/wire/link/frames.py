"""The frame that everything between two daemons travels in.

Where links are not sealed (:mod:`ringd.wire.link.sealing`), it is a header of 52 bytes and a
payload of ``length`` bytes. Little-endian::

    magic u16 | version u8 | type u8 | length u32 | generation u64 | group u64 | seq u64 |
    index u32 | origin u16 | until u16 | rank u16 | flags u16 | payload_crc u32 | header_crc u32

The header carries its own CRC-32, so a stream that is out of step is found at the first
header and never believed. That checksum also counts: it begins with the number of frames that
went before, so one that is missing or comes twice is found by the next.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Union

import msgspec

MAGIC = 0x6472
"""``b"rd"`` on the wire."""

VERSION = 1

CHECKSUM = 1
"""Flag: ``payload_crc`` is the CRC-32 of the payload, to be verified by the receiver."""

MESSAGE_CHECKSUM = 2
"""Flag of GROUP and STREAM frames: ``payload_crc`` is that of the message, ``index`` bytes."""

_KNOWN_FLAGS = CHECKSUM | MESSAGE_CHECKSUM

Buffer = Union[bytes, bytearray, memoryview]


class FrameError(Exception):
    """The bytes are not a frame; the text says what is wrong with them."""


class FrameType(enum.IntEnum):
    """What a frame is for."""

    HEARTBEAT = 1
    """Keeps a link alive and measures its round trip; handled by the link."""
    MEMBERSHIP = 2
    """A membership message between neighbours."""
    GROUP = 3
    """``index`` bytes of a group message, then raw tensor bytes."""
    DATA = 4
    """A chunk of a tensor."""
    BYE = 5
    """The sender closes the link; the payload says why, in UTF-8."""
    CREDIT = 7
    """How many chunks of an op may have been sent by now: ``index``."""
    INQUIRY = 6
    """A question to all members that can be reached, or an answer on its way back."""
    STREAM = 8
    """``index`` bytes of a message of a stream's other end, then bytes of that stream."""


MAX_LENGTH = {
    FrameType.HEARTBEAT: 0,
    FrameType.MEMBERSHIP: 1 << 20,
    FrameType.GROUP: 1 << 20,
    FrameType.DATA: 4 << 20,
    FrameType.BYE: 256,
    FrameType.INQUIRY: 1 << 20,
    FrameType.CREDIT: 0,
    FrameType.STREAM: 260 << 10,
}
"""The longest payload of each type, in bytes."""


# A Struct rather than a dataclass: made for every frame, and five times as fast to make.
class Header(msgspec.Struct, frozen=True, gc=False):
    """A frame's header, without what only guards it (magic, version, its own checksum)."""

    type: FrameType
    length: int = 0
    """Bytes of payload that follow."""
    generation: int = 0
    """Of the ring that the frame belongs to."""
    group: int = 0
    seq: int = 0
    index: int = 0
    """DATA: the chunk's number. GROUP, STREAM: bytes of message before the others."""
    origin: int = 0
    """The member that the frame comes from."""
    until: int = 0
    """The member at which its way ends; those between pass it on."""
    rank: int = 0
    """GROUP: the sender's, in its session."""
    flags: int = 0
    payload_crc: int = 0


_BODY = struct.Struct("<HBBIQQQIHHHHI")
_CRC = struct.Struct("<I")
_WHOLE = struct.Struct("<HBBIQQQIHHHHII")
_GUARDED = _BODY.size

HEADER_SIZE = _WHOLE.size
"""52."""

_WITH_MESSAGE = (int(FrameType.GROUP), int(FrameType.STREAM))

TYPES = {int(kind): (kind, cap) for kind, cap in MAX_LENGTH.items()}
"""By number, each type and its longest payload; :data:`UNKNOWN`, which has none, for any other."""
UNKNOWN = (FrameType.BYE, -1)

checksum = zlib.crc32
"""CRC-32 of a payload, for ``payload_crc`` with the flag :data:`CHECKSUM`."""


def pack(header: Header, number: int = 0) -> bytes:
    """Return the 52 bytes of *header*, of the frame that *number* others went before.

    Raises:
        struct.error: A field does not fit, which is a bug of the caller.
    """
    body = _BODY.pack(
        MAGIC,
        VERSION,
        header.type,
        header.length,
        header.generation,
        header.group,
        header.seq,
        header.index,
        header.origin,
        header.until,
        header.rank,
        header.flags,
        header.payload_crc,
    )
    return body + _CRC.pack(zlib.crc32(body, number & 0xFFFFFFFF))


def unpack(buffer: Buffer, number: int = 0) -> Header:
    """Return the header in the first 52 bytes of *buffer*, after *number* other frames.

    Raises:
        FrameError: These bytes are not a header of this version of the protocol, or it
            announces what no frame of its type may hold.
    """
    if len(buffer) < HEADER_SIZE:
        raise FrameError(f"{len(buffer)} bytes are too few for a frame header")
    (
        magic,
        version,
        kind,
        length,
        generation,
        group,
        seq,
        index,
        origin,
        until,
        rank,
        flags,
        payload_crc,
        header_crc,
    ) = _WHOLE.unpack_from(buffer)
    if magic != MAGIC:
        raise FrameError(f"magic 0x{magic:04x} is not that of a frame (0x{MAGIC:04x})")
    if version != VERSION:
        raise FrameError(f"frame version {version}, but this is version {VERSION}")
    if zlib.crc32(buffer[:_GUARDED], number & 0xFFFFFFFF) != header_crc:
        raise FrameError("the header's checksum is wrong")
    known, most = TYPES.get(kind, UNKNOWN)
    if length > most or index > length:
        known = checked(kind, length, index)
    if flags & ~_KNOWN_FLAGS:
        raise FrameError(f"unknown flags 0x{flags:04x}")
    return Header(
        known, length, generation, group, seq, index, origin, until, rank, flags, payload_crc
    )


def checked(kind: int, length: int, index: int) -> FrameType:
    """Return the type of a frame.

    Raises:
        FrameError: There is none of that number, or none of it is that long, or has that index.
    """
    known = TYPES.get(kind)
    if known is None:
        raise FrameError(f"unknown frame type {kind}")
    if length > known[1]:
        raise FrameError(
            f"a {known[0].name} frame of {length} bytes is over the limit of {known[1]}"
        )
    if kind in _WITH_MESSAGE and index > length:
        raise FrameError(f"a message of {index} bytes in a payload of {length}")
    return known[0]
