"""What a program says first over ZeroMQ, byte by byte."""

import struct

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
NAME = b"\0\0\0\0\0\0\0\0\7"


def prop(key: bytes, value: bytes) -> bytes:
    """Return a property of READY."""
    return bytes([len(key)]) + key + struct.pack(">I", len(value)) + value


def frame(body: bytes, flags: int = 0) -> bytes:
    """Return a frame, as short as it can be."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + struct.pack(">Q", len(body)) + body


def ready(*properties: bytes) -> bytes:
    """Return the command READY."""
    return frame(b"\x05READY" + b"".join(properties), 4)


DEALER = prop(b"Socket-Type", b"DEALER")
