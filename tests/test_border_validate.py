"""Calls and attachments that contradict themselves are refused in words, field by field."""

from functools import partial

import pytest
from borderkit import EIGHT, Raw
from msgspec.structs import replace

from ringd import errors
from ringd.border.validate import check_call
from ringd.collective.call import Call
from ringd.wire.border import messages as border
from ringd.wire.border.messages import ROOM_FOR_HEADERS

UNSOUND = [
    ({"seq": -1}, "sequence number"),
    ({"seq": 2**62 + 1}, "sequence number"),
    ({"acked": -1}, "sequence number"),
    ({"acked": 2**62 + 1}, "sequence number"),
    ({"join_id": 0}, "join id"),
    ({"timeout": float("nan")}, "timeout"),
    ({"timeout": float("inf")}, "timeout"),
]
NO_PART = [
    ({"local_rank": 1}, "local rank"),
    ({"local_rank": -1}, "local rank"),
    ({"local_size": 4097}, "local rank"),
    ({"members": ("a", "b", "a")}, "named twice"),
    ({"members": ("a" * 2000,)}, "name is too long"),
    ({"ordered": True}, "members by rank are some"),
    ({"places": (0,)}, "has a place"),
    ({"session": (5, 6), "places": (0, 70_000)}, "16 bits"),
    ({"session": (5, 6), "places": (0, -1)}, "16 bits"),
    ({"group": "g" * 115}, "printable"),
]
SHARED = Call("all_reduce", "sum", "float32", (1024,), "")
NOTHING = Call("all_reduce", "sum", "float32", (0,), "")
FROM_RANK_1 = Call("broadcast", "", "float32", (2,), "", root=1)
MUCH_FROM_RANK_1 = Call("broadcast", "", "float32", (1 << 28,), "", root=1)


def row(tensors, name="", *, kind="all_reduce_coalesced", shape=(2,)):
    """Return a call of tensors that travel as a row."""
    return Call(kind, "sum", "float32", shape, name, tensors=tensors)


FAULTS = [
    ({}, [bytes(7)], "has 8 bytes, but 7 came"),
    ({}, [], "input is missing"),
    ({"source": border.Ref(1, 0, 8)}, [EIGHT], "came twice"),
    ({"source": border.Ref(1, 0, 9)}, [], "has 8 bytes, but 9 came"),
    ({"target": border.Ref(1, 0, 4)}, [EIGHT], "target 4"),
    ({"call": NOTHING, "target": border.Ref(1, 0, 4)}, [], "has 0 bytes, its target 4"),
    ({"call": FROM_RANK_1, "target": border.Ref(1, 0, 4)}, [], "has 8 bytes, its target 4"),
    ({"call": MUCH_FROM_RANK_1}, [], "needs a target"),
    (
        {"call": SHARED, "source": border.Ref(1, 4096, 4096), "target": border.Ref(1, 0, 4096)},
        [],
        "overlap 0 to 4112, the target and its seal",
    ),
    (
        {"call": SHARED, "source": border.Ref(1, 0, 4096), "target": border.Ref(1, 4095, 4096)},
        [],
        "overlap",
    ),
    ({"message": "x" * 5000}, [EIGHT], "too long"),
    ({"call": Call("shuffle", "sum", "float32", (2,), "")}, [EIGHT], "unknown kind"),
    ({"call": Call("all_reduce", "xor", "float32", (2,), "")}, [EIGHT], "unknown op"),
    ({"call": Call("all_reduce", "sum", "object", (2,), "")}, [EIGHT], "dtype"),
    ({"call": Call("all_reduce", "mean", "int64", (1,), "")}, [EIGHT], "mean"),
    ({"call": Call("all_reduce", "sum", "float32", (-2,), "")}, [EIGHT], "shape"),
    ({"call": Call("all_reduce", "sum", "float32", (1 << 62, 4), "")}, [EIGHT], "large"),
    ({"call": Call("all_reduce", "sum", "float32", (1,) * 65, "")}, [EIGHT], "shape"),
    ({"call": Call("all_reduce", "sum", "float32", (2,), "n" * 257)}, [EIGHT], "name"),
    ({"call": row("[[2]]", "n" * 257)}, [EIGHT], "name"),
    ({"call": row("[[2]]", shape=(2, 1))}, [EIGHT], "the row of them has shape (2, 1)"),
    ({"call": row("[[1],[2]]")}, [EIGHT], "have 3 elements together"),
    ({"call": row("")}, [EIGHT], "no shapes of tensors"),
    ({"call": row("[[2]" + "\x1b" * 1000)}, [EIGHT], "no shapes of tensors"),
    ({"call": row("[" + "[1]," * 20_000 + "[1]]", shape=(20_001,))}, [EIGHT], "not 20001"),
    ({"call": row("[[1]]" + " " * (512 << 10))}, [EIGHT], "up to 131072 characters"),
    ({"call": row("[[2]]", kind="all_reduce")}, [EIGHT], "of one tensor"),
    ({"call": row("[[2]]")}, [bytes(7)], "has 8 bytes, but 7 came"),
    ({"call": Call("barrier", "sum", "", (), "")}, [], "barrier has no data"),
    ({"call": Call("barrier", "", "", (), "")}, [EIGHT], "0 bytes, but 8 came"),
]


@pytest.mark.parametrize(("changes", "frames", "text"), FAULTS)
def test_call_that_cannot_be_fails_alone(daemon, changes, frames, text):
    """What contradicts itself fails with the reason, and the session goes on."""
    with Raw(daemon) as raw:
        reply = raw.ask(raw.submit(**changes), *frames)
        assert (type(reply), reply.join_id, reply.seq) == (border.Failed, 5, 0)
        assert reply.code == "refused"
        assert text in reply.message
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)
        assert daemon.server.counters.denied_messages == 1


@pytest.mark.parametrize(("changes", "text"), UNSOUND)
def test_call_that_cannot_be_numbered_is_denied(daemon, changes, text):
    """A message with numbers to which no answer could refer is denied as a whole."""
    with Raw(daemon) as raw:
        reply = raw.ask(raw.submit(**changes), EIGHT)
        assert (type(reply), reply.code) == (border.Denied, "refused")
        assert text in reply.message
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


def test_what_has_ended_needs_no_target_for_its_result():
    """The client has that, or none will come: only others may need the input again."""
    submit = border.Submit(5, 0, SHARED, None, border.Ref(1, 0, 4096), None, 0, False, "", "")
    check = partial(check_call, payload_bytes=None, place=(0, 2), max_message=ROOM_FOR_HEADERS)
    with pytest.raises(errors.Refused, match="needs a target"):
        check(submit)
    for outcome in ("ok", "mismatch"):
        assert check(replace(submit, outcome=outcome)) == 0


def test_input_beside_its_target_is_no_overlap(daemon):
    """Source and target may share a segment, as long as the seal has room between them."""
    with Raw(daemon) as raw:
        raw.pass_segment(1, 16384)
        for seq, (source, target) in enumerate([(0, 4096), (4112, 0)]):
            refs = {"source": border.Ref(1, source, 4096), "target": border.Ref(1, target, 4096)}
            reply = raw.ask(raw.submit(seq=seq, call=SHARED, **refs))
            assert reply == border.Completed(5, seq, seq + 1, 7)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group": ""}, "group's name"),
        ({"group": "g" * 115}, "group's name"),
        ({"group": "a\nb"}, "group's name"),
        ({"join_id": 0}, "join id"),
        ({"next_seq": 1, "released": 2}, "contradict"),
        ({"next_seq": 2**62 + 1}, "sequence number"),
        ({"former": -1}, "former stay"),
        ({"former": 7, "loss": "x" * 513}, "former stay"),
        ({"released": -1}, "sequence number"),
        ({"on_loss": "panic"}, "on_loss"),
        ({"program": "p" * 2000}, "program"),
        ({"token": bytes(16)}, "token"),
    ],
)
def test_attachment_that_cannot_be_is_denied(daemon, changes, text):
    """An Attach is checked field by field."""
    with Raw(daemon, attach=False) as raw:
        reply = raw.ask(raw.attach(**changes))
        assert isinstance(reply, border.Denied)
        assert text in reply.message
        assert isinstance(raw.ask(raw.attach()), border.Attached)


@pytest.mark.parametrize(("changes", "text"), NO_PART)
def test_a_part_that_cannot_be_is_refused(daemon, changes, text):
    """Whether there are such members is the daemon's to say."""
    with Raw(daemon, attach=False) as raw:
        reply = raw.ask(raw.attach(**changes))
        assert isinstance(reply, border.Denied)
        assert text in reply.message
        good = raw.attach(
            group="g" * 114, members=("a", "b", "a"), ordered=True, local_rank=1, local_size=2
        )
        assert isinstance(raw.ask(good), border.Attached)
