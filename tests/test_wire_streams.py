"""What the ends of streams send each other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringd.wire.link import streams
from ringd.wire.link.control import DecodeError
from ringd.wire.link.streams import Connect, Data, Reset, State

offsets = st.integers(0, 2**62 - 1)
messages = st.one_of(
    st.builds(Connect, st.text(max_size=64), offsets, st.booleans()),
    st.builds(State, offsets, offsets, st.booleans(), st.booleans(), st.booleans()),
    st.builds(Data, st.booleans()),
    st.builds(Reset, st.text(max_size=400), st.booleans()),
)


@given(messages)
def test_round_trip(message):
    """What is sent is what is understood."""
    assert streams.decode(streams.encode(message)) == message


@given(st.binary(max_size=64))
def test_garbage(garbage):
    """Bytes are a message, or an error that the link knows."""
    try:
        message = streams.decode(garbage)
    except DecodeError:
        return
    assert isinstance(message, (Connect, State, Data, Reset))


@given(messages, st.data())
def test_damage(message, data):
    """So are those that nearly were one."""
    packed = bytearray(streams.encode(message))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    test_garbage.hypothesis.inner_test(bytes(packed))


@pytest.mark.parametrize(
    "message",
    [
        ["state", -1, 0, False, False, False],
        ["state", 2**62, 0, False, False, False],
        ["connect", "x" * 65, 0, False],
        ["connect", "x", -1, False],
        ["reset", "x" * 401, False],
        ["data", 1],
        ["data"],
        ["open", "x"],
    ],
)
def test_out_of_bounds(message):
    """Nobody has to be believed that an offset or a text is of a sane size."""
    with pytest.raises(DecodeError):
        streams.decode(msgspec.msgpack.encode(message))
