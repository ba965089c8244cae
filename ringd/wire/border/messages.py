"""The messages between a client program and its daemon.

They go over the ZeroMQ ipc socket; those of a client that has attached so, over its call socket
(:mod:`ringd.wire.border.stream`). A message is one frame::

    payload | MessagePack | length of the MessagePack u32 | whether there is a payload u8

The MessagePack is one of the structs below. The payload is an inline tensor, its raw bytes in C
order; it stands in front, where it is aligned. All is little-endian. Big tensors stand in
segments of shared memory instead and are named by a :class:`Ref`.

One frame, since libzmq aborts the process when a socket is closed while it has sent one frame of
a message to a peer that hangs up before the next (``session_base_t::clean_pipes``, 4.3.5).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Optional, TypeVar, Union

import msgspec

from ringd.collective.call import Call

VERSION = 1
"""Of this protocol; client and daemon must agree on it."""

TOKEN_BYTES = 16
"""What the daemon sends first on a lifeline; proves that a client's two connections are one's."""

MAX_LOSS = 512
"""Characters of what a client says of its former stay; the daemon remembers many such texts."""

MAX_CARRIED = 260 << 10
"""Bytes of a stream's message, with those of the stream."""

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
    """Join a group as this machine's client, or take one's place in it again.

    One connection may be in many groups, each under a join id of its own.
    """

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
    places: tuple[int, ...] = ()
    """The members on which those of the session are; empty: each on the member of its number."""
    local_rank: int = 0
    """Which one of the group's programs on this machine the client is."""
    local_size: int = 1
    """How many there are."""
    members: tuple[str, ...] = ()
    """The members that take part; empty for all. If *ordered*, by rank, as often as each has
    programs."""
    ordered: bool = False
    call_socket: bool = False
    """Whether the client uses its call socket: it is sent all there, and once it has been told
    there that it is :class:`Attached`, it sends all there, too: ZeroMQ might be overtaken."""


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """Open this end of a channel, in a session that the client was told of.

    Calls of it are submitted under *channel_id* in the place of a join id; the sender is rank 0 of
    two, the receiver rank 1. The same once more, but for *watch*, is harmless.
    """

    join_id: int
    channel_id: int
    """Chosen at random by the client, as a join id is; the same again after a reconnect."""
    source: int
    """The sender's rank."""
    to: int
    """The receiver's rank."""
    tag: int
    next_seq: int
    """As in :class:`Attach`."""
    released: int
    """As in :class:`Attach`."""
    watch: bool = False
    """Whether the client wants to be told how many messages have come, by :class:`Arrived`."""


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """Hand over one call; sending the same (join id, sequence number) again is harmless."""

    join_id: int
    seq: int
    call: Call
    timeout: Optional[float]
    """Seconds from now; None for the daemon's default, 0 or less for no deadline."""
    source: Optional[Ref]
    """The input; None when it is the message's payload."""
    target: Optional[Ref]
    """Where the result shall be written; None to send it inside the reply."""
    acked: int
    """The client has received the outcome of every op of this join below this number."""
    hold: bool
    """The input is the user's own memory: complete only when no member can need it again."""
    outcome: str
    """Empty for an open call; ``"ok"`` or an error's code for one that ended here before."""
    message: str
    asked: Optional[float] = None
    """The timeout that the program gave, in seconds, for messages; None if it gave none."""


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """Say what has been received, without waiting for the next call to say it."""

    join_id: int
    acked: int
    """As in :class:`Submit`."""


class Detach(msgspec.Struct, frozen=True, array_like=True, tag="detach"):
    """Leave one group; answered by :class:`Detached`. The connection's other stays go on."""

    join_id: int
    acked: int = 0
    """As in :class:`Submit`."""
    hung_up: bool = False
    """The ring of this group was forgotten."""


class AskAwaited(msgspec.Struct, frozen=True, array_like=True, tag="ask awaited"):
    """Ask for whom the group's session waits to form; answered by :class:`Awaited`."""

    join_id: int


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """Ask for the daemon's status; answered by :class:`Answer`. Needs no attachment."""

    version: int


class AskTrace(msgspec.Struct, frozen=True, array_like=True, tag="trace"):
    """Ask for the flight recorder's events; needs no attachment."""

    version: int


class AskLog(msgspec.Struct, frozen=True, array_like=True, tag="log"):
    """Ask for the last lines of the log; needs no attachment."""

    version: int


class AskRejoin(msgspec.Struct, frozen=True, array_like=True, tag="rejoin"):
    """Drop all links, forget backoff, resolve names afresh, join again; needs no attachment."""

    version: int
    token: bytes = b""
    """Of a lifeline that the asker holds, by which it is known whose process it is."""


class AskReload(msgspec.Struct, frozen=True, array_like=True, tag="reload"):
    """Read the configuration file again, as at SIGHUP; needs no attachment."""

    version: int
    token: bytes = b""
    """As in :class:`AskRejoin`."""


class AskDrain(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """Leave the ring once the calls under way are done, until :class:`AskResume`."""

    version: int
    token: bytes = b""
    """As in :class:`AskRejoin`."""


class AskResume(msgspec.Struct, frozen=True, array_like=True, tag="resume"):
    """Take part in the ring again."""

    version: int
    token: bytes = b""
    """As in :class:`AskRejoin`."""


class AskLogLevel(msgspec.Struct, frozen=True, array_like=True, tag="log level"):
    """Write messages from *level* on for a while, then as the configuration says again."""

    version: int
    level: str
    seconds: float
    token: bytes = b""
    """As in :class:`AskRejoin`."""


class Hold(msgspec.Struct, frozen=True, array_like=True, tag="hold"):
    """Have ends of streams in this program; over the call socket of a connection without groups.

    Answered by :class:`Held` and :class:`RingState`, or by :class:`Denied`.
    """

    version: int
    program: str
    serves: tuple[str, ...]
    """The services of this machine to which others' streams are to lead here."""
    reaches: tuple[tuple[str, str], ...]
    """Member and service of those that streams from here are to lead to."""


class Carry(msgspec.Struct, frozen=True, array_like=True, tag="carry"):
    """A message between the two ends of a stream, one of which is in this program.

    The bytes of the stream are the payload. To the daemon and from it.
    """

    number: int
    """The stream's."""
    member: int
    """Where the other end is."""
    generation: int
    """Of the ring; the daemon drops those of another one."""
    offset: int
    body: bytes
    """The message, as it goes from daemon to daemon."""


class Over(msgspec.Struct, frozen=True, array_like=True, tag="over"):
    """An end of a stream, which was in this program, is over."""

    number: int


Order = Union[AskRejoin, AskReload, AskDrain, AskResume, AskLogLevel]
"""What disturbs: not everybody who may use the ring may ask for that."""

Question = Union[AskStatus, AskTrace, AskLog, Order]
"""What needs no attachment; answered by :class:`Answer`."""

Request = Union[Attach, Open, Submit, Ack, Detach, AskAwaited, Hold, Carry, Over, Question]


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
    nodes: tuple[str, ...] = ()
    """The members' names, by rank."""


class Completed(msgspec.Struct, frozen=True, array_like=True, tag="completed"):
    """The call is done; the result is in the target, or in the message's payload."""

    join_id: int
    seq: int
    released: int
    generation: int
    ack: bool = False
    """Somebody waits for this to be received: answer with :class:`Ack`."""
    keep: bool = False
    """Others may need the input that was lent until this is released: leave it as it is."""


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


class Arrived(msgspec.Struct, frozen=True, array_like=True, tag="arrived"):
    """So many messages have come in a channel, of all that were ever sent."""

    join_id: int
    """The channel's number."""
    count: int


class Detached(msgspec.Struct, frozen=True, array_like=True, tag="detached"):
    """The client is in that group no more; nothing else comes of it."""

    join_id: int


class Awaited(msgspec.Struct, frozen=True, array_like=True, tag="awaited"):
    """For whom the group's session waits, within a sentence; empty once it has formed."""

    join_id: int
    text: str
    conflict: bool = False
    """Whether it waits in vain, as the programs disagree on who takes part: the text says how."""


class RingState(msgspec.Struct, frozen=True, array_like=True, tag="ring"):
    """The ring's state changed."""

    state: str
    generation: int
    reason: str = ""
    """Why the ring broke, if it did."""


class Held(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """The program may have ends of streams."""

    rank: int
    """This member's place in the ring."""
    nodes: tuple[str, ...]
    """The members' names, by rank."""


class Denied(msgspec.Struct, frozen=True, array_like=True, tag="denied"):
    """The request as a whole was refused (a malformed one has join id 0)."""

    join_id: int
    code: str
    message: str


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """The answer to a question; *body* is JSON."""

    body: bytes


Reply = Union[
    Attached,
    Completed,
    Failed,
    Released,
    Lost,
    Arrived,
    Detached,
    Awaited,
    RingState,
    Held,
    Carry,
    Denied,
    Answer,
]

COPY_SMALL = 8 << 10
"""Bytes; shorter frames are received as a copy: libzmq keeps them in a shared buffer, at any
offset; copying costs no more than wrapping, and the copy is aligned."""

MAX_REQUEST = 1 << 20
"""Bytes of a request without its payload, which may say something of each rank of a large group."""

ROOM_FOR_HEADERS = 4 << 10
"""Bytes that suffice beside the payload, for a call that is open and its result."""

_TRAILER = struct.Struct("<IB")

MAX_TAIL = MAX_REQUEST + _TRAILER.size
"""Bytes of the end of a message that tell what it is, without its payload."""

_encoder = msgspec.msgpack.Encoder()
_Message = TypeVar("_Message")

DecodeError = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoders raise on bytes that are not a message of theirs; for ``except``."""


def pack(message: Request | Reply, payload: bytes | memoryview | None = None) -> bytes:
    """Return the frame of *message* with *payload* (bytes), which is copied."""
    return b"".join(parts(message, payload))


def parts(
    message: Request | Reply, payload: bytes | memoryview | None = None
) -> tuple[bytes | memoryview, ...]:
    """Return what the frame of *message* with *payload* (bytes) is made of; that is not copied."""
    head = _encoder.encode(message)
    if payload is None:
        return (head + _TRAILER.pack(len(head), 0),)
    return payload, head + _TRAILER.pack(len(head), 1)


def _unpacker(
    decode: Callable[[memoryview], _Message], most: float
) -> Callable[[bytes | memoryview], tuple[_Message, memoryview | None]]:
    """Return what takes frames apart whose messages have up to *most* bytes without a payload."""

    def unpack(frame: bytes | memoryview) -> tuple[_Message, memoryview | None]:
        data = memoryview(frame)
        end = len(data) - _TRAILER.size
        if end < 0:
            raise msgspec.DecodeError(f"{len(data)} bytes are too few")
        length, has_payload = _TRAILER.unpack_from(data, end)
        start = end - length
        if start < 0 or has_payload not in (0, 1) or (start and not has_payload):
            raise msgspec.DecodeError("its trailer does not fit its length")
        if length > most:
            raise msgspec.DecodeError(f"{length} bytes without payload, more than {most}")
        return decode(data[start:end]), data[:start] if has_payload else None

    return unpack


unpack_request: Callable[[bytes | memoryview], tuple[Request, memoryview | None]] = _unpacker(
    msgspec.msgpack.Decoder(Request).decode, MAX_REQUEST
)
"""Return the client's message and its payload, which is part of the frame.

Raises:
    One of :data:`DecodeError`: these bytes are no request.
"""

unpack_reply: Callable[[bytes | memoryview], tuple[Reply, memoryview | None]] = _unpacker(
    msgspec.msgpack.Decoder(Reply).decode, math.inf
)
"""Return the daemon's message and its payload, as :data:`unpack_request` does."""
