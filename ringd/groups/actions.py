"""What the groups ask the daemon to do. Values only; the daemon carries them out in order."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from ringd.collective.call import Call
from ringd.collective.view import Side, View
from ringd.groups.op import Submission
from ringd.wire.link.control import GroupMessage, Poll


class Action(msgspec.Struct, frozen=True):
    """One thing to do."""


class Broadcast(Action, frozen=True):
    """Send *message* round the ring, from here up to the member *until*."""

    gid: int
    seq: int
    message: GroupMessage
    payload: bytes | memoryview
    rank: int
    """The sender's, in the session *gid*."""
    until: int
    side: Side = "right"
    origin: None = None
    """It comes from this member."""


class Relay(Action, frozen=True):
    """Pass a poll on to the right neighbour; it goes full circle and changes on its way."""

    origin: int
    """The asker's member."""
    gid: int
    seq: int
    message: Poll
    rank: int
    """The asker's."""
    side: Side = "right"
    payload: bytes = b""

    @property
    def until(self) -> int:
        """The member at which its way ends."""
        return self.origin


class Run(Action, frozen=True):
    """Compute the op, then call :meth:`Engine.finished`.

    Those of all ranks here come in one event, and a large op is computed for them together.
    """

    gid: int
    view: View
    """The rank's."""
    seq: int
    calls: tuple[Call, ...]
    """Everybody's, by rank; they fit together."""
    submission: Submission
    payloads: tuple[bytes | memoryview, ...] | None
    """Everybody's input by rank, for the one-trip path; None for chunks over the links."""
    serve: bool
    """This rank has its result already and works for the others: write it nowhere."""


class Stop(Action, frozen=True):
    """Abandon the running op; its buffers may be reused by their owner from now on.

    Those of all ranks here come in one event.
    """

    gid: int
    rank: int
    seq: int


class Seal(Action, frozen=True):
    """Mark the result in shared memory as complete."""

    join_id: int
    submission: Submission


class Free(Action, frozen=True):
    """The submission is needed no more; comes once for each one that was handed over."""

    submission: Submission


class ToClient(Action, frozen=True):
    """One thing to tell a client."""

    client: Hashable
    join_id: int


class Accept(ToClient, frozen=True):
    """Tell the client that it is in the group."""


class TellSession(ToClient, frozen=True):
    """Tell the client who its peers are, by join id: it attaches with that after a restart.

    Comes before the first offer. It must have left this process before that (the kernel then
    delivers it even if we die): a client that does not know its session was in none.
    """

    session: tuple[int, ...]
    places: tuple[int, ...] = ()
    """The members on which they are; empty: each on the member of its number."""


class Forget(ToClient, frozen=True):
    """Nothing more comes of the client's end of a channel, which is over."""


class TellArrived(ToClient, frozen=True):
    """Tell the client how many messages have come in a channel, of all that were ever sent."""

    count: int


class Deny(ToClient, frozen=True):
    """Tell the client that its request is refused."""

    code: str
    message: str


class Report(ToClient, frozen=True):
    """Tell the client how its call ended; *code* is ``"ok"`` or an error's."""

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
    group: str
    """Whose call it is."""


class TellReleased(ToClient, frozen=True):
    """Tell the client that ops below *released* are finished on all members."""

    released: int


class TellLost(ToClient, frozen=True):
    """Tell the client that its session is over from op *floor* on."""

    floor: int
    code: str
    message: str


class Warn(Action, frozen=True):
    """Log that somebody has been waiting for long, and for whom."""

    group: str
    seq: int
    call: Call
    age: float
    missing: str


class Dropped(Action, frozen=True):
    """A message was of no use; count it under this reason."""

    reason: str
