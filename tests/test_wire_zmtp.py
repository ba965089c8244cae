"""The beginning of a ZeroMQ connection, whoever speaks it and in whatever pieces it comes."""

from __future__ import annotations

import random
import struct

import pytest
from zmtpkit import DEALER, GREETING, NAME, frame, prop, ready

from ringd.wire.border.zmtp import LEAST, Program, ZmtpError, from_socket

MOST = 10_000


def passed(data: bytes, seed: random.Random | None = None) -> bytes:
    """Return what becomes of *data*, in one piece or in random ones."""
    program, out = Program(NAME, MOST), b""
    while data:
        cut = len(data) if seed is None else seed.randint(1, 9)
        out += program.pass_on(data[:cut])
        data = data[cut:]
    return out


@pytest.mark.parametrize(
    "own",
    [(), (prop(b"Identity", b""),), (prop(b"Identity", NAME),), (prop(b"IDENTITY", b"x" * 255),)],
    ids=["none", "empty", "another's", "long"],
)
def test_everybody_has_the_name_that_the_gate_gives(own):
    """Whatever name it comes in; the rest is as it was said, in whatever pieces it comes."""
    rest = frame(b"hello!") + frame(b"x" * 300)
    said = GREETING + ready(DEALER, *own, prop(b"Other", b"kept")) + rest
    renamed = ready(DEALER, prop(b"Other", b"kept"), prop(b"Identity", NAME))
    assert passed(said) == GREETING + renamed + rest
    for number in range(50):
        assert passed(said, random.Random(number)) == GREETING + renamed + rest


def test_greeting_goes_on_at_once_and_the_name_when_it_is_whole():
    """Each side waits for the other's greeting before it says more."""
    program = Program(NAME, MOST)
    assert program.pass_on(GREETING[:11]) == GREETING[:11]
    assert program.pass_on(GREETING[11:]) == GREETING[11:]
    said = ready(DEALER)
    assert program.pass_on(said[:-1]) == b""
    assert program.pass_on(said[-1:]).endswith(prop(b"Identity", NAME))
    assert program.pass_on(frame(b"anything")) == frame(b"anything")
    assert program.frames == 1


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
        (b"\xff" + bytes(8) + b"\x7e\x03", "or an old one"),  # without a version: its own name
        (GREETING + frame(b"a message"), "not followed by READY"),
        (GREETING + frame(b"\x05HELLO", 4), "not followed by READY"),
        (GREETING + b"\x06" + struct.pack(">Q", 1 << 60), "followed by"),
        (GREETING + ready(DEALER, b"\x08Identity\x00\x00\x00\xff"), "cut short"),
        (GREETING + ready(DEALER, b"\xffId"), "cut short"),
        (GREETING + ready(DEALER) + frame(b"\x04PING\x00\x00", 4), "a command"),
        (GREETING + ready(DEALER) + frame(bytes(MOST + 1)), "of up to 10000 bytes"),
        (GREETING + ready(DEALER) + b"\x02" + struct.pack(">Q", 1 << 62), "of up to 10000"),
        (GREETING + ready(DEALER) + 9 * frame(b"", 1), "a message has one frame"),
        (GREETING + ready(DEALER) + frame(b""), "has 6 bytes at least"),
        (GREETING + ready(DEALER) + frame(b"", 1) + frame(b"short"), "has 6 bytes at least"),
        (GREETING + ready(DEALER) + 3 * frame(bytes(MOST // 2), 1), "a message has one frame"),
    ],
)
def test_what_may_not_be_said_is_refused(said, why):
    """Before libzmq, which would keep it, or take it for what it is not."""
    with pytest.raises(ZmtpError, match=why):
        passed(said)
    with pytest.raises(ZmtpError, match=why):
        passed(said, random.Random(1))


def test_bytes_in_messages_are_told_from_the_rest():
    """In any pieces: of greeting, headers and commands none counts."""
    seed = random.Random(5)
    heard, said = GREETING + ready(DEALER), GREETING + ready(DEALER)
    expected = frames = 0
    for _ in range(200):
        body = seed.randbytes(seed.choice((0, 1, 6, 255, 256, 5000)))
        if seed.random() < 0.3:
            heard += frame(body, 4)
        else:
            heard += frame(body)
            expected += len(body)
            if len(body) >= LEAST:
                said += frame(body)
                frames += 1
    assert from_socket().count(heard) == expected
    for most in (1, 7, 1000):
        messages, counted, at = from_socket(), 0, 0
        while at < len(heard):
            step = seed.randint(1, most)
            counted += messages.count(heard[at : at + step])
            at += step
        assert counted == expected
        program, at = Program(NAME, MOST), 0
        while at < len(said):
            step = seed.randint(1, most)
            program.pass_on(said[at : at + step])
            at += step
        assert program.frames == frames
