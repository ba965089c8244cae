"""What the two ends of a stream send each other, over any members between them.

A stream has a number, chosen at random by the end that connects; a STREAM frame bears it as its
``group``. Offsets count the bytes of one direction from 0; behind the last one there is one more,
which stands for the end of that direction. All that is said of offsets is cumulative, so a message
that is lost with a link is made up for by the next one.
"""

from __future__ import annotations

from typing import Annotated, Union

import msgspec

MAX_SERVICE = 64
"""Characters of a service's name."""

MAX_REASON = 400
"""Characters of why a stream was reset."""

SEGMENT = 256 << 10
"""Bytes of a stream in one frame at most."""

_Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Connect(msgspec.Struct, frozen=True, array_like=True, tag="connect"):
    """Begin the stream; said again until the other end is heard. Answered by State, or Reset."""

    service: Annotated[str, msgspec.Meta(max_length=MAX_SERVICE)]
    """What it is to lead to, on the receiver's member."""
    limit: _Offset
    """As in :class:`State`."""
    in_program: bool
    """As in :class:`State`."""


class State(msgspec.Struct, frozen=True, array_like=True, tag="state"):
    """What the sender has received, and may be sent."""

    received: _Offset
    """It has all below this offset."""
    limit: _Offset
    """It takes bytes below this offset."""
    ask: bool
    """What was under way may be lost: answer with a State, and send again from *received* on."""
    in_program: bool
    """The sender's end is in a program, and so outlives its daemon."""
    to_program: bool
    """The receiver's end is in a program, as far as the sender has heard."""


class Data(msgspec.Struct, frozen=True, array_like=True, tag="data"):
    """Bytes from offset ``frame.seq`` on; they follow the message."""

    last: bool
    """The last one stands for the end of this direction."""


class Reset(msgspec.Struct, frozen=True, array_like=True, tag="reset"):
    """The stream is over, in both directions; bytes may be lost."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON)]
    absent: bool = False
    """Nobody is there yet for whom a stream was to be begun: it may be tried again."""


StreamMessage = Union[Connect, State, Data, Reset]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StreamMessage)


def encode(message: StreamMessage) -> bytes:
    """Return the MessagePack form of *message*."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> StreamMessage:
    """Return the message in *data*; raises :data:`ringd.wire.link.control.DecodeError`."""
    message: StreamMessage = _decoder.decode(data)
    return message
