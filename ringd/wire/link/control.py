"""The messages that daemons send each other, apart from bulk data.

Three families travel inside link frames (:mod:`ringd.wire.link.frames`):

* *membership* messages, from neighbour to neighbour, in both directions;
* *inquiries*, passed on both ways as far as links reach, and their answers back;
* *group* messages, broadcast rightwards round the ring by the member that they come from.

Encoding is MessagePack through msgspec: typed, validated, never code.
"""

from __future__ import annotations

from typing import Optional, Union

import msgspec

from ringd.collective.call import Call

# --- membership -----------------------------------------------------------------------


class LinkState(msgspec.Struct, frozen=True, array_like=True):
    """One member's own word on its links, flooded to whoever can be reached.

    The newest wins: ordered by ``(incarnation, version)``.
    """

    rank: int
    incarnation: int
    version: int
    left_up: bool
    right_up: bool
    generation: int
    """The highest generation this member has persisted."""
    address: str
    """The right neighbour's address in use, or the one last tried."""
    left_error: str = ""
    """Why the left link is down, in words; empty while it is up, as with the others."""
    right_error: str = ""
    disk_error: str = ""
    """Why nothing can be persisted."""
    draining: bool = False
    epoch: int = 0
    """Rises with every change that ends a ring (a link up, down or replaced, a full disk).

    A link that flaps may be seen from afar only in its last state, "up": the epoch tells.
    """
    disk_slow: str = ""
    """That a write is under way which takes long; no fault, but what others may wait for."""
    right_instance: int = 0
    """The process that the right link leads to; 0 without one."""

    @property
    def error(self) -> str:
        """All that is wrong, in words; empty while all is well."""
        return "; ".join(filter(None, (self.left_error, self.right_error, self.disk_error)))


class News(msgspec.Struct, frozen=True, array_like=True, tag="news"):
    """Link states that the receiver may not have yet."""

    states: tuple[LinkState, ...]


class Propose(msgspec.Struct, frozen=True, array_like=True, tag="propose"):
    """First round: rank 0 asks for everyone's highest generation."""

    attempt: int
    generation: int
    incarnations: tuple[int, ...]
    """Of rank 0 up to the sender."""


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """Second round: the ring's new generation, to be persisted and then used."""

    attempt: int
    generation: int
    incarnations: tuple[int, ...]
    """Of all members, in rank order."""


MembershipMessage = Union[News, Propose, Commit]


# --- inquiries ------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """*origin* asks everybody it can reach for their flight recorder; passed on both ways."""

    origin: int
    number: int
    """Tells the questions of one origin apart."""


class Told(msgspec.Struct, frozen=True, array_like=True, tag="told"):
    """The answer of *rank*, on its way back to *origin*."""

    origin: int
    number: int
    rank: int
    body: bytes
    """JSON, compressed with zlib."""


Inquiry = Union[Ask, Told]


# --- groups ---------------------------------------------------------------------------


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """A client of the sender takes part in a group, under a number of its own choosing."""

    group: str
    join_id: int
    session: tuple[int, ...]
    """The join ids, by rank, of the session that the client is in; empty before one formed."""
    places: tuple[int, ...] = ()
    """The members on which these are; empty: each on the member of its number."""
    local_rank: int = 0
    """Which one of the group's programs on its member the client is."""
    local_size: int = 1
    """How many there are."""
    members: tuple[int, ...] = ()
    """The members that take part; empty for all. If *ordered*, by rank, as often as each has
    programs."""
    ordered: bool = False


class Left(msgspec.Struct, frozen=True, array_like=True, tag="left"):
    """A client takes part no more in the session ``frame.group`` (0: it was in none).

    Calls below *submitted* were handed over and can still complete.
    """

    group: str
    join_id: int
    submitted: int
    code: str
    message: str
    channels: tuple[tuple[int, int, int, int], ...] = ()
    """Likewise of those of its channels: (sender's rank, receiver's rank, tag, submitted)."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """The sender's end of the channel ``frame.group`` is open."""

    answer: bool
    """It heard so of the other end, and need not hear it again."""
    group: str
    join_ids: tuple[int, int]
    """Of the stays of the sending and the receiving rank."""
    place: int
    """The member of the other end."""


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """The stay of the sender's end of the channel ``frame.group`` is over.

    Calls below *submitted* were handed over and can still complete.
    """

    submitted: int
    code: str
    message: str
    forgotten: bool = False
    """Nothing is left of it: it needs nothing any more."""


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer"):
    """A member's part in the op ``(frame.group, frame.seq)``; small payloads follow at once."""

    call: Call
    done: int
    """The sender has an outcome for every op of the session below this number."""
    eager: bool
    """The payload rides with this message."""
    prompt: bool
    """The sender waits for everyone's :class:`Done` before it completes the call."""
    outcome: str
    """Empty while open; ``"ok"``, or the code of the error that ended the op at the sender."""
    message: str
    """The error's message, when *outcome* is one."""

    @property
    def failed(self) -> bool:
        """Whether the op ended with an error at the sender."""
        return self.outcome not in ("", "ok")


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """The sender has an outcome for every op of the session below *floor*, and for *finished*."""

    floor: int
    finished: Optional[int] = None


class Computed(msgspec.Struct, frozen=True, array_like=True, tag="computed"):
    """The sender's part in an op is through: it has its result, and has sent all it had to send."""


class Poll(msgspec.Struct, frozen=True, array_like=True, tag="poll"):
    """First half of a cancellation: hold your completion, and say whether you had completed."""

    poll_id: int
    completed: bool


class Verdict(msgspec.Struct, frozen=True, array_like=True, tag="verdict"):
    """Second half: the op ends with this error everywhere, or goes on (empty *code*)."""

    poll_id: int
    code: str
    message: str


GroupMessage = Union[Joined, Left, Opened, Closed, Offer, Done, Computed, Poll, Verdict]

_encoder = msgspec.msgpack.Encoder()
_membership_decoder = msgspec.msgpack.Decoder(MembershipMessage)
_inquiry_decoder = msgspec.msgpack.Decoder(Inquiry)
_group_decoder = msgspec.msgpack.Decoder(GroupMessage)

DecodeError = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoders raise on bytes that are not a message of theirs; for ``except``."""


def encode(message: MembershipMessage | Inquiry | GroupMessage) -> bytes:
    """Return the MessagePack form of *message*."""
    return _encoder.encode(message)


def decode_membership(data: bytes | memoryview) -> MembershipMessage:
    """Return the membership message in *data*; raises :data:`DecodeError`."""
    message: MembershipMessage = _membership_decoder.decode(data)
    return message


def decode_inquiry(data: bytes | memoryview) -> Inquiry:
    """Return the inquiry message in *data*; raises :data:`DecodeError`."""
    message: Inquiry = _inquiry_decoder.decode(data)
    return message


def decode_group(data: bytes | memoryview) -> GroupMessage:
    """Return the group message in *data*; raises :data:`DecodeError`."""
    message: GroupMessage = _group_decoder.decode(data)
    return message
