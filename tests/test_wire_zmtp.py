"""The beginning of a ZeroMQ connection, whoever speaks it and in whatever pieces it comes."""

from __future__ import annotations

import random
import struct

import pytest

from ringd.wire.border.zmtp import Bodies, Opening, ZmtpError

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


def passed(data: bytes, seed: random.Random | None = None) -> bytes:
    """Return what an opening makes of *data*, in one piece or in random ones."""
    opening, out = Opening(NAME), b""
    while data:
        cut = len(data) if seed is None else seed.randint(1, 9)
        out += opening.pass_on(data[:cut])
        data = data[cut:]
    return out


@pytest.mark.parametrize(
    "own",
    [(), (prop(b"Identity", b""),), (prop(b"Identity", NAME),), (prop(b"IDENTITY", b"x" * 255),)],
    ids=["none", "empty", "another's", "long"],
)
def test_everybody_has_the_name_that_the_gate_gives(own):
    """Whatever name it comes in; the rest is as it was said, in whatever pieces it comes."""
    rest = frame(b"hello") + frame(b"x" * 300)
    said = GREETING + ready(DEALER, *own, prop(b"Other", b"kept")) + rest
    renamed = ready(DEALER, prop(b"Other", b"kept"), prop(b"Identity", NAME))
    assert passed(said) == GREETING + renamed + rest
    for number in range(50):
        assert passed(said, random.Random(number)) == GREETING + renamed + rest


def test_greeting_goes_on_at_once_and_the_name_when_it_is_whole():
    """Each side waits for the other's greeting before it says more."""
    opening = Opening(NAME)
    assert opening.pass_on(GREETING[:11]) == GREETING[:11]
    assert opening.pass_on(GREETING[11:]) == GREETING[11:]
    said = ready(DEALER)
    assert opening.pass_on(said[:-1]) == b""
    assert opening.pass_on(said[-1:]).endswith(prop(b"Identity", NAME))
    assert opening.pass_on(b"anything") == b"anything"


def test_a_long_command_is_taken_too():
    """A size of eight bytes may be small."""
    body = b"\x05READY" + DEALER
    said = b"\x06" + struct.pack(">Q", len(body)) + body
    assert passed(GREETING + said) == GREETING + ready(DEALER, prop(b"Identity", NAME))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "does not speak"),
        (b"\xff" + bytes(8) + b"\x7f\x01", "it speaks ZMTP 1"),
        (GREETING + frame(b"a message"), "not followed by READY"),
        (GREETING + frame(b"\x05HELLO", 4), "not followed by READY"),
        (GREETING + b"\x06" + struct.pack(">Q", 1 << 60), "followed by"),
        (GREETING + ready(DEALER, b"\x08Identity\x00\x00\x00\xff"), "cut short"),
        (GREETING + ready(DEALER, b"\xffId"), "cut short"),
    ],
)
def test_what_is_no_opening_is_refused(said, why):
    """Before it has gone on."""
    with pytest.raises(ZmtpError, match=why):
        passed(said)
    with pytest.raises(ZmtpError, match=why):
        passed(said, random.Random(1))


def test_bytes_in_messages_are_told_from_the_rest():
    """In any pieces: of greeting, headers and commands none counts."""
    seed = random.Random(5)
    stream, expected = GREETING + ready(DEALER), 0
    for _ in range(200):
        body = seed.randbytes(seed.choice((0, 1, 5, 255, 256, 5000)))
        command = seed.random() < 0.3
        stream += frame(body, 4 if command else 0)
        expected += 0 if command else len(body)
    assert Bodies().count(stream) == expected
    for most in (1, 7, 1000):
        bodies, counted, at = Bodies(), 0, 0
        while at < len(stream):
            step = seed.randint(1, most)
            counted += bodies.count(stream[at : at + step])
            at += step
        assert counted == expected
