"""The reading half of a link: where bytes go, and the frames that they make.

Headers, and payloads that came with them, pass through a small buffer. All other bytes are received
straight into the memory that they are for: that of a chunk, or the message's own; those of a sealed
chunk into memory of the reader's, which verifies it there. The owner has the socket, and learns of
frames by three callbacks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from ringd.wire.link.frames import FrameType, Header
from ringd.wire.link.framing import Reader

READ_BUFFER = 32 * 1024
"""Bytes of the small buffer: several control frames, also those of calls of 16 KiB, and the head of
a large one."""

_NOTHING = memoryview(b"")


class Incoming:
    """Frames out of a stream of bytes.

    The callbacks may call any method, and may raise :class:`~ringd.wire.link.frames.FrameError`.

    Args:
        leftover: The first bytes of the stream; handed over by the first :meth:`advance`.
        reader: Knows the form of the frames.
        destination: Returns where a DATA frame's payload goes, ``header.length`` bytes; None:
            it is read and discarded.
        complete: Told that this memory is filled with what was sent: its seal is right, or its
            checksum if it had one.
        deliver: By type, who is given every other frame; the payload stays as it is.
    """

    def __init__(
        self,
        leftover: bytes,
        reader: Reader,
        *,
        destination: Callable[[Header], memoryview | None],
        complete: Callable[[Header], None],
        deliver: Mapping[FrameType, Callable[[Header, memoryview], None]],
    ) -> None:
        self._reader = reader
        self._destination = destination
        self._complete = complete
        self._deliver = deliver
        self._closed = False
        self._small = memoryview(bytearray(max(READ_BUFFER, len(leftover))))
        self._small[: len(leftover)] = leftover
        self._end = len(leftover)  # the small buffer holds unparsed bytes up to here
        self._header: Header | None = None  # of the frame whose payload is being received
        self._body = _NOTHING  # where that payload and its tail are received
        self._target: memoryview | None = None  # where it is wanted
        self._filled = 0
        self._discarding = False

    def receive(self, sock: socket.socket) -> int:
        """Read once and return the number of bytes, for :meth:`advance`; 0 at the end.

        Raises:
            OSError: By the socket, also BlockingIOError.
        """
        if self._header is None:
            return sock.recv_into(self._small[self._end :])
        # The next header comes with the end of this payload, in one call. No name is given to
        # the slice: its owner may unmap the memory as soon as it is complete.
        return sock.recvmsg_into([self._body[self._filled :], self._small])[0]

    def advance(self, got: int) -> bool:
        """Hand over what *got* more bytes complete; return whether they filled all there was.

        Raises:
            FrameError: They are no frames; nothing can be made of this stream any more.
        """
        header = self._header
        rest = 0 if header is None else len(self._body) - self._filled
        full = got == rest + len(self._small) - self._end
        if got < rest:
            self._filled += got
            return full
        self._end += got - rest
        if header is not None:
            self._hand_over()
        if self._end >= self._reader.header_size:
            self._parse()
        return full

    def divert(self, group: int, seq: int) -> None:
        """Discard the rest of a DATA payload of the op ``(group, seq)``, as if from the start."""
        header = self._header
        if (
            header is not None
            and header.type is FrameType.DATA
            and (header.group, header.seq) == (group, seq)
        ):
            self._target = None
            self._body = self._reader.room(header, None)
            self._discarding = True

    def close(self) -> None:
        """Hand nothing over any more, and let go of all memory."""
        self._closed = True
        self._header = self._target = None
        self._body = _NOTHING

    def _parse(self) -> None:
        """Consume the small buffer: afterwards it holds less than a header."""
        small, reader = self._small, self._reader
        start, end = 0, self._end
        while end - start >= reader.header_size and not self._closed:
            header = reader.header(small[start : start + reader.header_size])
            start += reader.header_size
            kind = header.type
            length = header.length + reader.tail if header.length else 0
            if kind is FrameType.DATA:
                self._target = self._destination(header)
                self._discarding = self._target is None
            elif end - start >= length:
                data = small[start : start + length]
                start += length
                payload = reader.whole(header, data) if length else _NOTHING
                self._deliver[kind](header, payload)
                continue
            self._body = reader.room(header, self._target)
            have = min(end - start, length)
            self._body[:have] = small[start : start + have]
            start += have
            self._header = header
            self._filled = have
            if have < length:
                break
            self._hand_over()
        rest = end - start
        if rest and start:
            small[:rest] = small[start:end]
        self._end = rest

    def _hand_over(self) -> None:
        """Hand over the payload that has just become complete."""
        header, body, target = self._header, self._body, self._target
        self._header = self._target = None
        self._body = _NOTHING
        if header is None or self._discarding:
            self._discarding = False
            return
        payload = self._reader.payload(header, body, target)
        if header.type is FrameType.DATA:
            del payload, body, target  # see receive
            self._complete(header)
        else:
            self._deliver[header.type](header, payload)
