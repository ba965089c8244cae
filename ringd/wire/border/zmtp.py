"""What of ZeroMQ's protocol (ZMTP 3.x, RFC 23 and 37) a gate before a ZeroMQ socket must read.

A connection begins with a greeting of 64 bytes from each side, and a command READY from each, in
which a client may give itself a name, its *Identity*. Then there are frames, of messages and
commands: flags u8, size u8 or (big-endian) u64, body.
"""

from __future__ import annotations

import struct

_GREETING_BYTES = 64
_SIGNATURE = {0: 0xFF, 9: 0x7F}  # bytes by place; who has others there speaks ZMTP 1, or no ZMTP
_VERSION_AT = 10
_LEAST_VERSION = 3

_MORE = 0x01
_LONG = 0x02
_COMMAND = 0x04
_MAX_READY = 1024  # libzmq's have some 50 bytes
_READY = b"\x05READY"
_SHORT_HEADER = struct.Struct(">BB")
_LONG_HEADER = struct.Struct(">BQ")
_VALUE_SIZE = struct.Struct(">I")


MAX_FRAMES = 8
"""Of a message: those of ringd have one, and a socket of another kind adds one."""

LEAST = 6
"""Bytes of a message: what closes one of :mod:`ringd.wire.border.messages`, and one more."""


class ZmtpError(Exception):
    """A program says what it may not; the message says what that is."""


class Messages:
    """Tells, of what one side says, the bytes in messages from greeting, headers and commands.

    The user of a ZeroMQ socket sees the former alone.

    Args:
        opening: bytes that stand before the first frame.
        most: bytes of a message; None for any number, and for commands too. libzmq bounds neither
            commands nor frames, of which it keeps thousands in what has few bytes.
    """

    def __init__(self, opening: int, most: int | None) -> None:
        self._left = opening
        """Bytes that are to come of what has begun."""
        self._in_message = False
        """Whether they count."""
        self._head = bytearray()
        """Of a header, what has come."""
        self._most = most
        self.frames = 0
        """Of messages, that have begun."""
        self._frames = 0
        self._size = 0
        """Of the message that is not complete."""

    def count(self, data: bytes) -> int:
        """Return how many bytes of *data*, which is said next, belong to messages.

        Raises:
            ZmtpError: it is not what may be said.
        """
        found = at = 0
        while at < len(data):
            if self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
                found += taken if self._in_message else 0
                at += taken
            elif not self._head and len(data) - at >= _LONG_HEADER.size:
                layout = _LONG_HEADER if data[at] & _LONG else _SHORT_HEADER
                flags, self._left = layout.unpack_from(data, at)
                self._begin(flags, self._left)
                at += layout.size
            else:
                self._head.append(data[at])
                at += 1
                if (header := _parse_header(self._head)) is not None:
                    self._head.clear()
                    self._left = header[1]
                    self._begin(*header)
        return found

    def _begin(self, flags: int, size: int) -> None:
        self._in_message = not flags & _COMMAND
        if self._most is None:
            return
        self.frames += 1
        self._frames += 1
        self._size += size
        if flags & _COMMAND:
            raise ZmtpError("it sends a command, such as a heartbeat: have it send none")
        if self._size > self._most or self._frames > MAX_FRAMES:
            raise ZmtpError(f"a message has one frame, of up to {self._most} bytes")
        if self._size < LEAST and not flags & _MORE:
            raise ZmtpError(f"a message has {LEAST} bytes at least")
        if not flags & _MORE:
            self._frames = self._size = 0


class Program:
    """What a program says, with *name* in the place of the name that it gives itself.

    Args:
        name: of the connection.
        most: bytes of a message.
    """

    def __init__(self, name: bytes, most: int) -> None:
        self._name = name
        self._greeting = bytearray()
        self._rest = bytearray()
        self._ready = False
        self._messages = Messages(0, most)

    @property
    def frames(self) -> int:
        """How many frames of messages it has begun to say."""
        return self._messages.frames

    def pass_on(self, data: bytes) -> bytes:
        """Return what the other side shall have of *data*, which the program has said next.

        Raises:
            ZmtpError: it is not what may be said.
        """
        if self._ready:
            self._messages.count(data)
            return data
        passed = data[: _GREETING_BYTES - len(self._greeting)]  # each side waits for the other's
        self._greeting += passed
        self._check_greeting()
        self._rest += data[len(passed) :]
        frame = _frame(self._rest, _MAX_READY)
        if frame is None:
            return passed
        flags, body = frame
        if not (flags & _COMMAND and body.startswith(_READY)):
            raise ZmtpError("its greeting is not followed by READY")
        self._ready = True
        behind = bytes(self._rest[len(_header(flags, len(body))) + len(body) :])
        self._rest.clear()
        return passed + self._renamed(body) + self.pass_on(behind)

    def _check_greeting(self) -> None:
        begin = self._greeting
        if any(at < len(begin) and begin[at] != byte for at, byte in _SIGNATURE.items()):
            raise ZmtpError("it does not speak ZeroMQ's protocol, or an old one")
        if len(begin) > _VERSION_AT and begin[_VERSION_AT] < _LEAST_VERSION:
            raise ZmtpError(f"it speaks ZMTP {begin[_VERSION_AT]}, and not {_LEAST_VERSION}")

    def _renamed(self, ready: bytes) -> bytes:
        kept = [(key, value) for key, value in _properties(ready) if key.lower() != b"identity"]
        body = _READY + b"".join(
            bytes([len(key)]) + key + _VALUE_SIZE.pack(len(value)) + value
            for key, value in (*kept, (b"Identity", self._name))
        )
        flags = _COMMAND if len(body) < 256 else _COMMAND | _LONG  # noqa: PLR2004 - fits in a u8
        return _header(flags, len(body)) + body


def from_socket() -> Messages:
    """Return what counts the bytes in messages of what a ZeroMQ socket says."""
    return Messages(_GREETING_BYTES, None)


def _frame(stream: bytearray, most: int) -> tuple[int, bytes] | None:
    """Return flags and body of the frame that *stream* begins with; None while it is not complete.

    Raises:
        ZmtpError: it has more than *most* bytes.
    """
    if (header := _parse_header(stream)) is None:
        return None
    flags, size = header
    if size > most:
        raise ZmtpError(f"its greeting is followed by {size} bytes")
    start = len(_header(flags, size))
    return (flags, bytes(stream[start : start + size])) if len(stream) >= start + size else None


def _parse_header(stream: bytearray) -> tuple[int, int] | None:
    layout = _LONG_HEADER if stream[:1] and stream[0] & _LONG else _SHORT_HEADER
    if len(stream) < layout.size:
        return None
    flags, size = layout.unpack_from(stream)
    return flags, size


def _header(flags: int, size: int) -> bytes:
    return (_LONG_HEADER if flags & _LONG else _SHORT_HEADER).pack(flags, size)


def _properties(ready: bytes) -> list[tuple[bytes, bytes]]:
    """Return the properties in the body of READY: name and value of each."""
    found = []
    at = len(_READY)
    while at < len(ready):
        key_end = at + 1 + ready[at]
        value_at = key_end + _VALUE_SIZE.size
        if value_at > len(ready):
            raise ZmtpError("its READY is cut short")
        (size,) = _VALUE_SIZE.unpack_from(ready, key_end)
        if value_at + size > len(ready):
            raise ZmtpError("its READY is cut short")
        found.append((ready[at + 1 : key_end], ready[value_at : value_at + size]))
        at = value_at + size
    return found
