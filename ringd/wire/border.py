"""The messages between a client program and its daemon, over the ZeroMQ ipc socket.

A ZeroMQ message is one frame of MessagePack (one of the structs below), and for an inline
tensor a second frame with its raw little-endian bytes in C order. Big tensors stand in
segments of shared memory instead and are named by a :class:`Ref`.
"""

from __future__ import annotations

import struct
from typing import Optional, Union

import msgspec

from ringd.wire.control import Call

VERSION = 1
"""Of this protocol; client and daemon must agree on it."""

TOKEN_BYTES = 16
"""What the daemon sends first on a lifeline; proves that a client's two connections are one's."""

MAX_LOSS = 512
"""Characters of what a client says of its former stay; the daemon remembers many such texts."""

SEAL = struct.Struct("<QQ")
"""Join id and sequence number, written by the daemon behind a finished result.

It stands at ``offset + align_up(length, SEAL_ALIGN)`` of the target, which the client zeroes
before it submits. A daemon that dies between finishing an op and telling its client has thereby
told it all the same; so others may forget their inputs as soon as the seal is set.
"""

SEAL_ALIGN = 16


def seal_offset(target: Ref) -> int:
    """Return where, in bytes from the start of the segment, the seal of *target* stands."""
    return target.offset + -(-target.length // SEAL_ALIGN) * SEAL_ALIGN


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """A tensor's place in a segment that was passed over the lifeline."""

    segment: int
    """The client's number for the segment."""
    offset: int
    """In bytes."""
    length: int
    """In bytes."""


# --- client to daemon -----------------------------------------------------------------


class Attach(msgspec.Struct, frozen=True, array_like=True, tag="attach"):
    """Join a group as this machine's client, or take one's place in it again."""

    version: int
    token: bytes
    group: str
    join_id: int
    """Chosen at random by the client for each join; the same again after a reconnect."""
    next_seq: int
    """The number of the next op the client will submit for the first time.

    Those from *released* up to here are submitted again right after this.
    """
    released: int
    """Every op below is known to be finished on all members."""
    on_loss: str
    """``"wait"`` or ``"fail"``."""
    pid: int
    program: str
    session: tuple[int, ...] = ()
    """The join ids, by rank, of the session, as told over a lifeline; empty before that."""
    former: int = 0
    """The join id of the client's stay before this one; 0 for none."""
    loss: str = ""
    """What GroupLost said of the former stay, where that is how it ended."""


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """Hand over one call; sending the same (join id, sequence number) again is harmless."""

    join_id: int
    seq: int
    call: Call
    timeout: Optional[float]
    """Seconds from now; None for the daemon's default, 0 or less for no deadline."""
    source: Optional[Ref]
    """The input; None when it is the message's second frame."""
    target: Optional[Ref]
    """Where the result shall be written; None to send it inside the reply."""
    acked: int
    """The client has received the outcome of every op of this join below this number."""
    hold: bool
    """The input is the user's own memory: complete only when no member can need it again."""
    outcome: str
    """Empty for an open call; ``"ok"`` or an error's code for one that ended here before."""
    message: str


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """Say what has been received, without waiting for the next call to say it."""

    join_id: int
    acked: int
    """As in :class:`Submit`."""


class Detach(msgspec.Struct, frozen=True, array_like=True, tag="detach"):
    """Leave the group in good order."""

    join_id: int


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """Ask for the daemon's status; answered by :class:`Answer`. Needs no attachment."""

    version: int


class AskRejoin(msgspec.Struct, frozen=True, array_like=True, tag="rejoin"):
    """Drop all links, forget backoff, resolve names afresh, join again; needs no attachment."""

    version: int


class AskTrace(msgspec.Struct, frozen=True, array_like=True, tag="trace"):
    """Ask for the flight recorder's events; needs no attachment."""

    version: int


Request = Union[Attach, Submit, Ack, Detach, AskStatus, AskRejoin, AskTrace]


# --- daemon to client -----------------------------------------------------------------


class Attached(msgspec.Struct, frozen=True, array_like=True, tag="attached"):
    """The client is in the group."""

    join_id: int
    node: str
    rank: int
    size: int
    state: str
    """``"forming"``, ``"ready"`` or ``"draining"``."""
    generation: int
    inline_limit: int
    """Bytes; tensors up to here travel inside the message."""
    max_message: int
    """Bytes; the daemon drops a connection that sends more in one message."""
    segment_budget: int
    """Bytes of shared memory that one client may have passed at any time."""
    window: int
    """How many unreleased ops a client may have."""
    lost_after: float = 3.0
    """Seconds; how late the daemon may be to notice that a deadline has passed."""
    timeout: Optional[float] = None
    """Seconds; the deadline of calls that name none. None for no deadline."""


class Completed(msgspec.Struct, frozen=True, array_like=True, tag="completed"):
    """The call is done; the result is in the target, or in the message's second frame."""

    join_id: int
    seq: int
    released: int
    generation: int
    ack: bool = False
    """Somebody waits for this to be received: answer with :class:`Ack`."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The call ended with an error."""

    join_id: int
    seq: int
    released: int
    code: str
    message: str
    ack: bool = False
    """As in :class:`Completed`."""


class Released(msgspec.Struct, frozen=True, array_like=True, tag="released"):
    """Every op below *released* is finished on all members; inputs and segments are free."""

    join_id: int
    released: int


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """The session is over: calls from *floor* on fail with this error; those below go on."""

    join_id: int
    floor: int
    code: str
    message: str


class RingState(msgspec.Struct, frozen=True, array_like=True, tag="ring"):
    """The ring's state changed."""

    state: str
    generation: int


class Denied(msgspec.Struct, frozen=True, array_like=True, tag="denied"):
    """The request as a whole was refused (a malformed one has join id 0)."""

    join_id: int
    code: str
    message: str


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """The answer to a question; *body* is JSON."""

    body: bytes


Reply = Union[Attached, Completed, Failed, Released, Lost, RingState, Denied, Answer]

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)

DecodeError = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoders raise on bytes that are not a message of theirs; for ``except``."""


def encode(message: Request | Reply) -> bytes:
    """Return the MessagePack form of *message*."""
    return _encoder.encode(message)


def decode_request(data: bytes | memoryview) -> Request:
    """Return the client's message in *data*; raises :data:`DecodeError`."""
    message: Request = _request_decoder.decode(data)
    return message


def decode_reply(data: bytes | memoryview) -> Reply:
    """Return the daemon's message in *data*; raises :data:`DecodeError`."""
    message: Reply = _reply_decoder.decode(data)
    return message
