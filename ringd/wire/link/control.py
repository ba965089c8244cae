"""The messages that daemons send each other, apart from bulk data.

Three families travel inside link frames (:mod:`ringd.wire.link.frames`):

* *membership* messages, from neighbour to neighbour, in both directions;
* *inquiries*, passed on both ways as far as links reach, and their answers back;
* *group* messages, broadcast rightwards round the ring by the member that they come from.

Encoding is MessagePack through msgspec: typed, validated, never code. Every field is bounded by its
type (:mod:`ringd.wire.link.bounds`), and what people may get to see is cleaned as it is decoded.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Annotated, Optional, TypeVar, Union

import msgspec
from msgspec.structs import replace

from ringd.collective.call import MAX_LOCAL_SIZE, Call
from ringd.wire.link.bounds import (
    MAX_CHANNELS,
    MAX_ERROR,
    MAX_MEMBERS,
    Code,
    Count,
    Counts,
    Distance,
    GroupName,
    Instance,
    JoinId,
    JoinIds,
    LocalRank,
    LocalSize,
    Member,
    Outcome,
    Places,
    Rank,
    Sequence,
    Tag,
    Text,
    Trouble,
    clean,
)
from ringd.wire.link.frames import FrameError

# --- membership -----------------------------------------------------------------------


class LinkState(msgspec.Struct, frozen=True, array_like=True):
    """One member's own word on its links, flooded to whoever can be reached.

    The newest wins: ordered by ``(incarnation, version)``.
    """

    rank: Member
    incarnation: Count
    version: Count
    left_up: bool
    right_up: bool
    generation: Count
    """The highest generation this member has persisted."""
    address: Trouble
    """The right neighbour's address in use, or the one last tried."""
    left_error: Trouble = ""
    """Why the left link is down, in words; empty while it is up, as with the others."""
    right_error: Trouble = ""
    disk_error: Trouble = ""
    """Why nothing can be persisted."""
    draining: bool = False
    epoch: Count = 0
    """Rises with every change that ends a ring (a link up, down or replaced, a full disk).

    A link that flaps may be seen from afar only in its last state, "up": the epoch tells.
    """
    disk_slow: Trouble = ""
    """That a write is under way which takes long; no fault, but what others may wait for."""
    right_instance: Instance = 0
    """The process that the right link leads to; 0 without one."""

    @property
    def error(self) -> str:
        """All that is wrong, in words; empty while all is well."""
        return "; ".join(filter(None, (self.left_error, self.right_error, self.disk_error)))


class News(msgspec.Struct, frozen=True, array_like=True, tag="news"):
    """Link states that the receiver may not have yet."""

    states: Annotated[tuple[LinkState, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


class Propose(msgspec.Struct, frozen=True, array_like=True, tag="propose"):
    """First round: rank 0 asks for everyone's highest generation."""

    attempt: Count
    generation: Count
    incarnations: Counts
    """Of rank 0 up to the sender."""


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """Second round: the ring's new generation, to be persisted and then used."""

    attempt: Count
    generation: Count
    incarnations: Counts
    """Of all members, in rank order."""


MembershipMessage = Union[News, Propose, Commit]


# --- inquiries ------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """*origin* asks everybody it can reach for their flight recorder; passed on both ways."""

    origin: Member
    number: Sequence
    """Tells the questions of one origin apart."""


class Told(msgspec.Struct, frozen=True, array_like=True, tag="told"):
    """The answer of *rank*, on its way back to *origin*."""

    origin: Member
    number: Sequence
    rank: Member
    body: bytes
    """JSON, compressed with zlib."""


Inquiry = Union[Ask, Told]


# --- groups ---------------------------------------------------------------------------


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """A client of the sender takes part in a group, under a number of its own choosing."""

    group: GroupName
    join_id: JoinId
    session: JoinIds
    """The join ids, by rank, of the session that the client is in; empty before one formed."""
    places: Places = ()
    """The members on which these are; empty: each on the member of its number."""
    local_rank: LocalRank = 0
    """Which one of the group's programs on its member the client is."""
    local_size: LocalSize = 1
    """How many there are."""
    members: Places = ()
    """The members that take part; empty for all. If *ordered*, by rank, as often as each has
    programs."""
    ordered: bool = False


class Left(msgspec.Struct, frozen=True, array_like=True, tag="left"):
    """A client takes part no more in the session ``frame.group`` (0: it was in none).

    Calls below *submitted* were handed over and can still complete.
    """

    group: GroupName
    join_id: JoinId
    submitted: Sequence
    code: Code
    message: Text
    channels: Annotated[
        tuple[tuple[Rank, Rank, Tag, Sequence], ...], msgspec.Meta(max_length=MAX_CHANNELS)
    ] = ()
    """Likewise of those of its channels: (sender's rank, receiver's rank, tag, submitted)."""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """The sender's end of the channel ``frame.group`` is open."""

    answer: bool
    """It heard so of the other end, and need not hear it again."""
    group: GroupName
    join_ids: tuple[JoinId, JoinId]
    """Of the stays of the sending and the receiving rank."""
    place: Member
    """The member of the other end."""


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """The stay of the sender's end of the channel ``frame.group`` is over.

    Calls below *submitted* were handed over and can still complete.
    """

    submitted: Sequence
    code: Code
    message: Text
    forgotten: bool = False
    """Nothing is left of it: it needs nothing any more."""


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer"):
    """A member's part in the op ``(frame.group, frame.seq)``; small payloads follow at once."""

    call: Call
    behind: Distance
    """The sender has an outcome for every op of the session below the number that is so many before
    this op's. It is told thus so that calls that are made in turn are offered in the same words."""
    eager: bool
    """The payload rides with this message."""
    prompt: bool
    """The sender waits for everyone's :class:`Done` before it completes the call."""
    outcome: Outcome
    """Empty while open; ``"ok"``, or the code of the error that ended the op at the sender."""
    message: Text
    """The error's message, when *outcome* is one."""

    @property
    def failed(self) -> bool:
        """Whether the op ended with an error at the sender."""
        return self.outcome not in ("", "ok")


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """The sender has an outcome for every op of the session below *floor*, and for *finished*."""

    floor: Sequence
    finished: Optional[Sequence] = None


class Computed(msgspec.Struct, frozen=True, array_like=True, tag="computed"):
    """The sender's part in an op is through: it has its result, and has sent all it had to send."""


class Poll(msgspec.Struct, frozen=True, array_like=True, tag="poll"):
    """First half of a cancellation: hold your completion, and say whether you had completed."""

    poll_id: Sequence
    completed: bool


class Verdict(msgspec.Struct, frozen=True, array_like=True, tag="verdict"):
    """Second half: the op ends with this error everywhere, or goes on (empty *code*)."""

    poll_id: Sequence
    code: Outcome
    message: Text


GroupMessage = Union[Joined, Left, Opened, Closed, Offer, Done, Computed, Poll, Verdict]

_encoder = msgspec.msgpack.Encoder()
_membership_decoder = msgspec.msgpack.Decoder(MembershipMessage)
_inquiry_decoder = msgspec.msgpack.Decoder(Inquiry)
_group_decoder = msgspec.msgpack.Decoder(GroupMessage)

DecodeError = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoders raise on bytes that are not a message of theirs; for ``except``."""


def encode(message: MembershipMessage | Inquiry | GroupMessage) -> bytes:
    """Return the MessagePack form of *message*, whose texts are brought within their bounds."""
    if type(message) is Offer and not (message.call.counts or message.call.tensors):
        return _known_words(message)
    return _encode(message)


def _encode(message: MembershipMessage | Inquiry | GroupMessage) -> bytes:
    return _encoder.encode(_cleaned(message))


_known_words = lru_cache(maxsize=256)(_encode)


def decode_membership(data: bytes | memoryview) -> MembershipMessage:
    """Return the membership message in *data*; raises :data:`DecodeError`."""
    message: MembershipMessage = _membership_decoder.decode(data)
    return _cleaned(message)


def decode_inquiry(data: bytes | memoryview, size: int) -> Inquiry:
    """Return the inquiry message in *data*, which came from a member of a ring of *size*.

    Raises:
        msgspec.DecodeError: or another one of :data:`DecodeError`: it is none.
        FrameError: No member can have said that.
    """
    message: Inquiry = _inquiry_decoder.decode(data)
    return _sound(message, size)


def decode_group(data: bytes, size: int) -> GroupMessage:
    """Return the group message in *data*, which came from a member of a ring of *size*.

    Raises:
        FrameError: It is none, or no member can have said that.
    """
    # As a rule all members offer a call in the same words, and all but the first are known.
    decode = _known_group if len(data) <= _SHORT else _decode_group
    return decode(data, size)


def _decode_group(data: bytes, size: int) -> GroupMessage:
    try:
        message: GroupMessage = _group_decoder.decode(data)
    except DecodeError as error:
        raise FrameError(f"bad message: {error}") from None
    return _sound(_cleaned(message), size)


_known_group = lru_cache(maxsize=256)(_decode_group)
_SHORT = 512
"""Bytes of what is kept, at most."""


def _objection(message: Inquiry | GroupMessage, size: int) -> str:
    """Return what is impossible about *message* in a ring of *size* members; empty if nothing is.

    Asked before it is passed on, so it needs nothing that only some members know.
    """
    if isinstance(message, Offer):  # of every call, as is Done
        if not message.call.bounded:
            return f"an offer of {clean(str(message.call.cut()), MAX_ERROR)}"
        return "" if message.outcome.isprintable() else f"an outcome {message.outcome!r}"
    if isinstance(message, Done):
        return ""
    if isinstance(message, (Ask, Told)):
        member = max(message.origin, getattr(message, "rank", 0))
        return "" if member < size else f"an inquiry of rank {member}"
    if isinstance(message, Joined) and (reason := _objection_to_join(message, size)):
        return reason
    if isinstance(message, Opened) and message.place >= size:
        return f"a channel to member {message.place}, which there is not"
    group, code = getattr(message, "group", ""), getattr(message, "code", "")
    if code == "ok":  # a call would end well that was not computed
        return f"a {type(message).__name__} with the code of no error"
    return "" if (group + code).isprintable() else f"a name or code {group + code!r}"


def _objection_to_join(message: Joined, size: int) -> str:
    if len(message.session) > MAX_LOCAL_SIZE * size:
        return f"a session of {len(message.session)} programs"
    for places in (message.places, message.members):
        if max(places, default=0) >= size:
            return f"a program of group {message.group!r} on a member that there is not"
        if len(places) > MAX_LOCAL_SIZE < max(Counter(places).values()):
            return f"more than {MAX_LOCAL_SIZE} programs of a group on one member"
    return ""


_M = TypeVar("_M", bound=msgspec.Struct)
_R = TypeVar("_R", Inquiry, GroupMessage)


def _sound(message: _R, size: int) -> _R:
    if reason := _objection(message, size):
        raise FrameError(reason)
    return message


def _cleaned(message: _M) -> _M:
    """Return *message* with texts that people may get to see."""
    if isinstance(message, Done) or (isinstance(message, Offer) and not message.message):
        return message  # of every call
    if isinstance(message, (Offer, Left, Closed, Verdict)):
        return replace(message, message=clean(message.message))
    if isinstance(message, News):
        return replace(message, states=tuple(map(_cleaned_state, message.states)))
    return message


def _cleaned_state(state: LinkState) -> LinkState:
    return replace(
        state,
        address=clean(state.address, MAX_ERROR),
        left_error=clean(state.left_error, MAX_ERROR),
        right_error=clean(state.right_error, MAX_ERROR),
        disk_error=clean(state.disk_error, MAX_ERROR),
        disk_slow=clean(state.disk_slow, MAX_ERROR),
    )
