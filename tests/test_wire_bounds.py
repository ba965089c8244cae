"""What daemons tell each other is bounded where it is decoded, field by field."""

from __future__ import annotations

import typing

import msgspec
import pytest

from ringd.collective.call import MAX_AXES, MAX_CALL_NAME, MAX_COUNTS, MAX_WORD, Call
from ringd.config import settings
from ringd.wire.link import bounds, control
from ringd.wire.link.bounds import MAX_COUNT, MAX_SEQUENCE, MAX_TEXT
from ringd.wire.link.control import (
    Ask,
    Closed,
    Commit,
    Computed,
    DecodeError,
    Done,
    Joined,
    Left,
    LinkState,
    News,
    Offer,
    Opened,
    Poll,
    Propose,
    Told,
    Verdict,
)
from ringd.wire.link.frames import FrameError

CALL = Call("all_reduce", "sum", "float32", (4,), "grad")
STATE = LinkState(1, 1, 1, True, True, 0, "here:1")
MESSAGES = [
    News((STATE,)),
    Propose(1, 1, (1,)),
    Commit(1, 1, (1, 1)),
    Ask(0, 1),
    Told(0, 1, 1, b"x"),
    Joined("g", 1, (1, 2), (0, 1), 0, 1, (0, 1)),
    Left("g", 1, 0, "lost", "gone", ((0, 1, 2, 3),)),
    Opened(False, "g", (1, 2), 0),
    Closed(0, "lost", "gone"),
    Offer(CALL, 0, True, False, "", ""),
    Done(0, 1),
    Computed(),
    Poll(1, False),
    Verdict(1, "lost", "gone"),
]

NUMBERS = [-1, MAX_COUNT + 1, MAX_SEQUENCE + 1, 1 << 63, (1 << 64) - 1]
JOIN_IDS = {"join_id", "session", "join_ids"}
"""Any number of 64 bits but zero."""


def decode(message, size=bounds.MAX_MEMBERS):
    """Return what arrives of *message*, in a ring of *size*."""
    data = msgspec.msgpack.encode(message)
    if isinstance(message, (News, Propose, Commit)):
        return control.decode_membership(data)
    if isinstance(message, (Ask, Told)):
        return control.decode_inquiry(data, size)
    return control.decode_group(data, size)


def out_of_bounds(message):
    """Return *message* in copies that have one field each that no member would send."""
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, bool):
            wrong = []
        elif isinstance(value, int):
            least = -MAX_SEQUENCE if name == "behind" else 0
            wrong = [(1 << 64) - 1, 1 << 63, MAX_SEQUENCE + 1, least - 1]
            wrong = [-1, 0] if name in JOIN_IDS else wrong
        elif isinstance(value, str):
            wrong = ["x" * 5000]
        elif isinstance(value, tuple) and value and isinstance(value[0], int):
            wrong = [(-1,) * len(value), (1,) * 200_000]
            wrong += [(0,) * len(value)] if name in JOIN_IDS else [(1 << 63,) * len(value)]
        elif name == "channels":
            wrong = [((0, 1, 2, -1),), ((0, 1, 1 << 15, 0),), ((1 << 16, 0, 0, 0),)]
            wrong += [((0, 1, 2, 3),) * 70_000]
        elif name == "states":
            wrong = [(STATE,) * 65]
            wrong += [(state,) for state in out_of_bounds(STATE)]
        else:
            wrong = []
        for bad in wrong:
            yield msgspec.structs.replace(message, **{name: bad})


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_is_bounded(message):
    """What is out of bounds is not decoded, whatever the field; what is within them is."""
    assert decode(message) == message
    if isinstance(message, (Left, Closed)):  # calls that end have an error
        with pytest.raises((*DecodeError, FrameError)):
            decode(msgspec.structs.replace(message, code=""))
    for wrong in out_of_bounds(message):
        with pytest.raises((*DecodeError, FrameError)):
            decode(wrong)


def test_every_message_is_tried():
    """A new message is bounded, too."""
    kinds = {
        kind
        for union in (control.MembershipMessage, control.Inquiry, control.GroupMessage)
        for kind in typing.get_args(union)
    }
    assert {type(message) for message in MESSAGES} == kinds


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (1,) * (MAX_AXES + 1)},
        {"name": "x" * (MAX_CALL_NAME + 1)},
        {"counts": (1,) * (MAX_COUNTS + 1)},
        {"kind": "k" * (4 * MAX_WORD)},
        {"dtype": "float\x1b[2J"},
        {"reduction": "sum\n"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_calls_are_bounded(changes):
    """An offer of one that no program could have made is refused before it is passed on."""
    call = msgspec.structs.replace(CALL, **changes)
    with pytest.raises(FrameError, match="an offer of"):
        decode(Offer(call, 0, True, False, "", ""), 3)
    # What a daemon says of such a call of a program of its own.
    cut = Offer(call.cut(), 0, False, False, "refused", "why")
    assert decode(cut, 3) == cut


@pytest.mark.parametrize(
    "message",
    [
        Ask(2, 1),
        Told(0, 1, 2, b""),
        Told(2, 1, 0, b""),
        Joined("g", 1, (1,), (2,)),
        Joined("g", 1, (), (), members=(2,)),
        Joined("g\n", 1, ()),
        Opened(False, "g", (1, 2), 2),
        Opened(False, "g\x07", (1, 2), 0),
        Left("g\x1b", 1, 0, "lost", ""),
        Left("g", 1, 0, "lost\x1b", ""),
        Closed(0, "lost\x1b", ""),
        Verdict(0, "lost\x1b", ""),
        *(kind(0, "ok", "") for kind in (Closed, Verdict)),
        Left("g", 1, 0, "ok", ""),
        Offer(CALL, 0, False, False, "lost\x1b", ""),
    ],
    ids=str,
)
def test_what_cannot_be_in_this_ring_is_refused(message):
    """Members that there are not, and names and codes that a terminal might obey."""
    with pytest.raises(FrameError) as refusal:
        decode(message, 2)
    assert "\x1b" not in str(refusal.value)


def test_what_is_known_is_decoded_once():
    """Offers in the same words are one message; in a ring of another size they are judged anew."""
    words = control.encode(Offer(CALL, 5, True, False, "", ""))
    assert control.decode_group(words, 3) is control.decode_group(bytes(words), 3)
    message = Joined("g", 1, (), (), members=(2,))
    assert decode(message, 3) == message
    with pytest.raises(FrameError):
        decode(message, 2)
    long = control.encode(Offer(CALL, 5, False, False, "lost", "x" * 600))
    assert control.decode_group(long, 3) is not control.decode_group(long, 3)


def test_texts_are_cleaned_as_they_come():
    """Of control characters; they are what people read, so they are no reason for refusal."""
    bad, good = "a\x1b[2Jb\nc", "a?[2Jb?c"
    for message in (
        Left("g", 1, 0, "lost", bad),
        Closed(0, "lost", bad),
        Verdict(0, "lost", bad),
        Offer(CALL, 0, False, False, "lost", bad),
    ):
        assert decode(message).message == good
    fields = ("address", "left_error", "right_error", "disk_error", "disk_slow")
    (state,) = decode(News((msgspec.structs.replace(STATE, **dict.fromkeys(fields, bad)),))).states
    assert [getattr(state, field) for field in fields] == [good] * len(fields)


def test_own_texts_are_cut_as_they_go():
    """However long an error's text is, the others do not take it for nonsense."""
    message = Left("g", 1, 0, "lost", "x" * (MAX_TEXT + 1))
    assert control.decode_group(control.encode(message), 3).message == "x" * MAX_TEXT


def test_the_bounds_fit_the_rest():
    """The ring has as many members as the config allows, and numbers have room behind them."""
    assert settings.MAX_MEMBERS == bounds.MAX_MEMBERS
    assert bounds.COUNTED_ON + bounds.NEARBY < MAX_COUNT < MAX_SEQUENCE < 1 << 63
