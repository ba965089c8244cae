"""How frames become bytes and bytes become frames: plain here, sealed in a file beside this one.

A writer and a reader belong to one direction of one link, and count its frames.
"""

from __future__ import annotations

from typing import Protocol

from ringd.wire.link import frames
from ringd.wire.link.frames import HEADER_SIZE, Buffer, FrameError, Header


class Writer(Protocol):
    """Makes the bytes of one frame after the other, in the order in which they are to be sent."""

    def whole(self, header: Header, *payload: Buffer) -> bytes:
        """Return the next frame, whose payload stands in these pieces, in memory of its own.

        Without pieces: what comes before the payload.
        """

    def parts(self, header: Header, *payload: Buffer) -> list[Buffer]:
        """Return the next frame in pieces, without a copy where it needs none.

        They are good until the next call; those of the *payload* are as long as these are.
        """


class Reader(Protocol):
    """Makes frames of bytes, in the order in which they came.

    All but ``room`` raise :class:`~ringd.wire.link.frames.FrameError`.
    """

    header_size: int
    """Bytes of every header."""
    tail: int
    """Bytes that follow a payload, where there is one."""

    def header(self, data: memoryview) -> Header:
        """Return the next frame's header, of which these are the bytes."""

    def whole(self, header: Header, data: memoryview) -> memoryview:
        """Return the payload of a frame other than DATA, in memory of its own.

        *data* is all of it, with its tail; at least a byte. One function for most of the frames
        that there are, in place of the two that follow.
        """

    def room(self, header: Header, target: memoryview | None) -> memoryview:
        """Return where the payload's bytes and its tail are to be received.

        *target* is where the payload is wanted; None: in memory of its own, or of a DATA frame
        anywhere. Called again in the middle of a frame, what the former room held may be lost.
        """

    def payload(self, header: Header, data: memoryview, target: memoryview | None) -> memoryview:
        """Return the payload that came as *data*, which is right; it stands in *target*, if any.

        That of a DATA frame is good until the next call, any other stays.
        """


ALIGNMENT = 16
"""Bytes that the address of a tensor behind a message is a multiple of, as that of an array is."""


def room_of_its_own(header: Header, target: memoryview | None = None, tail: int = 0) -> memoryview:
    """Return *target*, or new memory for a payload and its tail.

    In that, a tensor at ``index`` is aligned.
    """
    if target is not None:
        return target
    start = -header.index % ALIGNMENT
    return memoryview(bytearray(start + header.length + tail))[start:]


class PlainWriter:
    """Headers with a CRC-32; a payload has one if its header says so."""

    def __init__(self) -> None:
        self._number = 0

    def whole(self, header: Header, *payload: Buffer) -> bytes:
        """See :class:`Writer`."""
        head = frames.pack(header, self._number)
        self._number += 1
        return b"".join((head, *payload))

    def parts(self, header: Header, *payload: Buffer) -> list[Buffer]:
        """See :class:`Writer`."""
        head = frames.pack(header, self._number)
        self._number += 1
        return [head, *payload]


class PlainReader:
    """What a :class:`PlainWriter` has written."""

    header_size = HEADER_SIZE
    tail = 0

    def __init__(self) -> None:
        self._number = 0

    def header(self, data: memoryview) -> Header:
        """See :class:`Reader`."""
        header = frames.unpack(data, self._number)
        self._number += 1
        return header

    def whole(self, header: Header, data: memoryview) -> memoryview:
        """See :class:`Reader`."""
        room = room_of_its_own(header)
        room[:] = data
        return self.payload(header, room, None)

    room = staticmethod(room_of_its_own)
    """See :class:`Reader`: in its place at once."""

    def payload(
        self,
        header: Header,
        data: memoryview,
        target: memoryview | None,  # noqa: ARG002 - it stands there
    ) -> memoryview:
        """See :class:`Reader`."""
        if header.flags:
            covered = data[: header.index] if header.flags & frames.MESSAGE_CHECKSUM else data
            if frames.checksum(covered) != header.payload_crc:
                raise FrameError(f"the checksum of a {header.type.name} payload is wrong")
        return data
