"""Frame headers."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringd.wire.link import frames
from ringd.wire.link.frames import CHECKSUM, MAX_LENGTH, FrameError, FrameType, Header


def raw(*, magic=frames.MAGIC, version=frames.VERSION, kind=4, length=0, index=0, flags=0):
    """Return a header with a right checksum, whatever it says."""
    fields = (magic, version, kind, length, 0, 0, 0, index, 0, 0, 0, flags, 0)
    body = struct.pack("<HBBIQQQIHHHHI", *fields)
    return body + struct.pack("<I", zlib.crc32(body))


u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)


WITH_MESSAGE = (FrameType.GROUP, FrameType.STREAM)


@st.composite
def headers(draw):
    """Headers that are allowed."""
    kind = draw(st.sampled_from(FrameType))
    length = draw(st.integers(0, MAX_LENGTH[kind]))
    index = draw(st.integers(0, length) if kind in WITH_MESSAGE else u32)
    flags = draw(st.sampled_from([0, CHECKSUM]))
    ring, group, seq = draw(u64), draw(u64), draw(u64)
    origin, until, rank = draw(u16), draw(u16), draw(u16)
    return Header(kind, length, ring, group, seq, index, origin, until, rank, flags, draw(u32))


def test_layout():
    """The bytes on the wire are those of the documentation, for ever in this version."""
    header = Header(FrameType.DATA, 0x01020304, 5, 6, 7, 8, 9, 10, 11, 1, 0x0A0B0C0D)
    expected = (
        b"rd\x01\x04\x04\x03\x02\x01"
        b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0"
        b"\x08\0\0\0\x09\0\x0a\0\x0b\0\x01\0\x0d\x0c\x0b\x0a"
    )
    expected += zlib.crc32(expected).to_bytes(4, "little")
    assert frames.pack(header) == expected
    assert len(expected) == frames.HEADER_SIZE == 52


@given(headers(), st.binary(max_size=8))
def test_round_trip(header, behind):
    """What was packed is unpacked, from any kind of buffer, whatever follows."""
    packed = frames.pack(header)
    for buffer in (packed, bytearray(packed + behind), memoryview(packed + behind)):
        assert frames.unpack(buffer) == header


@given(headers())
def test_every_flipped_bit_is_found(header):
    """No single bit of a header can change unnoticed."""
    packed = frames.pack(header)
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            frames.unpack(damaged)


@given(st.binary(max_size=64))
def test_garbage(garbage):
    """Arbitrary bytes are refused in words."""
    with pytest.raises(FrameError):
        frames.unpack(garbage)


@given(kind=st.integers(0, 255), length=u32, index=u32, flags=u16)
def test_believable_garbage(kind, length, index, flags):
    """Behind a right checksum, a header is still held to what its type may say."""
    packed = raw(kind=kind, length=length, index=index, flags=flags)
    try:
        header = frames.unpack(packed)
    except FrameError:
        return
    assert header.length <= MAX_LENGTH[header.type]
    assert header.type not in WITH_MESSAGE or header.index <= header.length
    assert frames.pack(header) == packed


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (raw()[:51], "51 bytes are too few for a frame header"),
        (raw(magic=0x4547), "magic 0x4547 is not that of a frame (0x6472)"),
        (raw(version=9), "frame version 9, but this is version 1"),
        (raw()[:-1] + b"\xff", "the header's checksum is wrong"),
        (raw(kind=77), "unknown frame type 77"),
        (raw(kind=1, length=1), "a HEARTBEAT frame of 1 bytes is over the limit of 0"),
        (raw(kind=7, length=1), "a CREDIT frame of 1 bytes is over the limit of 0"),
        (raw(kind=5, length=257), "a BYE frame of 257 bytes is over the limit of 256"),
        (raw(length=(4 << 20) + 1), "a DATA frame of 4194305 bytes is over the limit of 4194304"),
        (raw(flags=0x8000), "unknown flags 0x8000"),
        (raw(kind=3, length=4, index=5), "a message of 5 bytes in a payload of 4"),
        (raw(kind=8, length=4, index=5), "a message of 5 bytes in a payload of 4"),
        (raw(kind=8, length=266241), "a STREAM frame of 266241 bytes is over the limit of 266240"),
    ],
)
def test_reasons(packed, reason):
    """A refusal says precisely what is wrong."""
    with pytest.raises(FrameError) as caught:
        frames.unpack(packed)
    assert str(caught.value) == reason


def test_values_that_do_not_fit():
    """A field that is too large for the wire is never cut."""
    with pytest.raises(struct.error):
        frames.pack(Header(FrameType.DATA, generation=2**64))
