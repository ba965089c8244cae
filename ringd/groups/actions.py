"""What the groups ask the daemon to do. Values only; the daemon carries them out in order."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Union

import msgspec

from ringd.collective.call import Call
from ringd.groups.op import Submission
from ringd.wire.link.control import GroupMessage, Poll


class Broadcast(msgspec.Struct, frozen=True):
    """Send *message* round the ring, from here to all others."""

    gid: int
    seq: int
    message: GroupMessage
    payload: bytes | memoryview = b""


class Relay(msgspec.Struct, frozen=True):
    """Pass a poll on to the right neighbour; it goes full circle and changes on its way."""

    origin: int
    gid: int
    seq: int
    message: Poll


class Run(msgspec.Struct, frozen=True):
    """Compute the op, then call :meth:`Engine.finished`."""

    gid: int
    seq: int
    calls: tuple[Call, ...]
    """Everybody's, by rank; they fit together."""
    submission: Submission
    payloads: tuple[bytes | memoryview, ...] | None
    """Everybody's input by rank, for the one-trip path; None for chunks over the links."""
    serve: bool
    """This rank has its result already and works for the others: write it nowhere."""


class Stop(msgspec.Struct, frozen=True):
    """Abandon the running op; its buffers may be reused by their owner from now on."""

    gid: int
    seq: int


class Seal(msgspec.Struct, frozen=True):
    """Mark the result in shared memory as complete."""

    join_id: int
    submission: Submission


class Free(msgspec.Struct, frozen=True):
    """The submission is needed no more; comes once for each one that was handed over."""

    submission: Submission


class Accept(msgspec.Struct, frozen=True):
    """Tell the client that it is in the group."""

    client: Hashable
    join_id: int


class TellSession(msgspec.Struct, frozen=True):
    """Tell the client who its peers are, by join id: it attaches with that after a restart.

    Comes before the first offer. It must have left this process before that (the kernel then
    delivers it even if we die): a client that does not know its session was in none.
    """

    client: Hashable
    join_id: int
    session: tuple[int, ...]


class Deny(msgspec.Struct, frozen=True):
    """Tell the client that its request is refused."""

    client: Hashable
    join_id: int
    code: str
    message: str


class Report(msgspec.Struct, frozen=True):
    """Tell the client how its call ended; *code* is ``"ok"`` or an error's."""

    client: Hashable
    join_id: int
    submission: Submission
    code: str
    message: str
    released: int
    ack: bool
    """Somebody waits to hear that the client has it: ask it to say so at once."""
    keep: bool
    """Others may still need the input that the client lent: it must leave us that as it is."""
    again: bool
    """It was told before, and may not have arrived: the call has not ended once more."""


class TellReleased(msgspec.Struct, frozen=True):
    """Tell the client that ops below *released* are finished on all members."""

    client: Hashable
    join_id: int
    released: int


class TellLost(msgspec.Struct, frozen=True):
    """Tell the client that its session is over from op *floor* on."""

    client: Hashable
    join_id: int
    floor: int
    code: str
    message: str


class Warn(msgspec.Struct, frozen=True):
    """Log that somebody has been waiting for long, and for whom."""

    group: str
    seq: int
    call: Call
    age: float
    missing: str


class Dropped(msgspec.Struct, frozen=True):
    """A message was of no use; count it under this reason."""

    reason: str


Action = Union[
    Broadcast,
    Relay,
    Run,
    Stop,
    Seal,
    Free,
    Accept,
    TellSession,
    Deny,
    Report,
    TellReleased,
    TellLost,
    Warn,
    Dropped,
]
