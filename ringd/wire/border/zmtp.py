"""What of ZeroMQ's protocol (ZMTP 3.x, RFC 23 and 37) a gate before a ZeroMQ socket must read.

A connection begins with a greeting of 64 bytes from each side, and a command READY from each, in
which a client may give itself a name, its *Identity*. Then there are frames, of messages and
commands: flags u8, size u8 or (big-endian) u64, body.
"""

from __future__ import annotations

import struct

_GREETING_BYTES = 64
_SIGNATURE_BEGINS = 0xFF
_VERSION_AT = 10
_LEAST_VERSION = 3

_LONG = 0x02
_COMMAND = 0x04
_MAX_READY = 1024  # libzmq's have some 50 bytes
_READY = b"\x05READY"
_SHORT_HEADER = struct.Struct(">BB")
_LONG_HEADER = struct.Struct(">BQ")
_VALUE_SIZE = struct.Struct(">I")


class ZmtpError(Exception):
    """These bytes do not begin a connection of ZMTP 3; the message says why."""


class Opening:
    """What a client says first, with *name* put in the place of the name that it gives itself."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._greeting = bytearray()
        self._rest = bytearray()
        self._ready = False

    def pass_on(self, data: bytes) -> bytes:
        """Return what the other side shall have of *data*, which the client has said next.

        Raises:
            ZmtpError: it speaks another protocol.
        """
        if self._ready:
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
        behind = self._rest[len(_header(flags, len(body))) + len(body) :]
        return passed + self._renamed(body) + behind

    def _check_greeting(self) -> None:
        begin = self._greeting
        if begin[:1] and begin[0] != _SIGNATURE_BEGINS:
            raise ZmtpError("it does not speak ZeroMQ's protocol")
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


class Bodies:
    """Tells, of what one side says, the bytes in messages from greeting, headers and commands.

    The user of a ZeroMQ socket sees the former alone.
    """

    def __init__(self) -> None:
        self._skip = _GREETING_BYTES
        """So many bytes that are next belong to no message."""
        self._left = 0
        """And so many behind them to one."""
        self._head = bytearray()

    def count(self, data: bytes) -> int:
        """Return how many bytes of *data*, which is said next, belong to messages."""
        found = at = 0
        while at < len(data):
            if self._skip:
                taken = min(self._skip, len(data) - at)
                self._skip -= taken
            elif self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
                found += taken
            else:
                taken = 1
                self._head.append(data[at])
                if (header := _parse_header(self._head)) is not None:
                    flags, size = header
                    self._head.clear()
                    self._skip, self._left = (size, 0) if flags & _COMMAND else (0, size)
            at += taken
        return found


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
