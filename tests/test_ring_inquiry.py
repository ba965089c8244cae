"""Questions to all members: what others ask and answer is believed as far as it can be shown."""

from __future__ import annotations

import json
import zlib

import pytest

from ringd.cli.trace import lines
from ringd.collective.call import Call
from ringd.observe.recorder import MAX_EVENTS, OpEvent, Recorder, can_be_shown
from ringd.ring import inquiry
from ringd.ring.inquiry import Inquiries
from ringd.wire.link.control import Ask, Told

NAMES = ("a", "b")


def dump(node="b", **event):
    """Return what the recorder of *node* says, with one event."""
    events = [{"at": 1.5, "what": "link up", **event}] if event else []
    return json.dumps({"schema_version": 1, "node": node, "events": events}).encode()


class Asker:
    """The member a of two, that has asked."""

    def __init__(self, loop):
        self.sent, self.answers = [], []
        self.inquiries = Inquiries(
            loop, 0, NAMES, lambda *sent: self.sent.append(sent), lambda: dump("a")
        )
        self.inquiries.ask(self.answers.append)

    def told(self, body, rank=1):
        """Have an answer come."""
        number = self.sent[0][1].number
        self.inquiries.received("right", Told(0, number, rank, body))


def test_a_real_dump_can_be_shown():
    """With events of all sorts, and what a member says of its programs."""
    recorder = Recorder("b")
    recorder.note("link lost", side="left", reason="cut")
    call = Call("all_reduce", "sum", "float32", (4,), "x")
    recorder.op(OpEvent(2.0, "g", 1, call, 16, 1.0, None, "ok"))
    recorder.op(OpEvent(2.0, "g", 2, call, 16, 1.0, 1.5, ""))
    assert can_be_shown(recorder.dump(), "b")
    assert len(lines({"members": [json.loads(recorder.dump())], "silent": []})) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        dump("a"),
        dump(at="x"),
        dump(at=-1.0),
        dump(at=1e300),
        dump(what=7),
        dump(what="op", seq=1),
        b'{"node":"b","events":[' + b'{"at":1,"what":"x"},' * MAX_EVENTS + b'{"at":1,"what":"x"}]}',
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
def test_what_no_recorder_says_is_no_answer(loop, body):
    """The member counts as silent, and what the others say is shown all the same."""
    asker = Asker(loop)
    asker.told(zlib.compress(body))
    asker.told(body)
    assert asker.answers == []
    asker.told(zlib.compress(dump()))
    assert asker.answers == [{0: dump("a"), 1: dump()}]


def test_nobody_answers_for_this_member(loop):
    """Nor twice for another one: what came first counts."""
    asker = Asker(loop)
    asker.told(zlib.compress(dump("a", at=9.0)), rank=0)
    asker.told(zlib.compress(dump()))
    assert asker.answers == [{0: dump("a"), 1: dump()}]


def test_questions_that_come_too_fast_are_left_alone(loop):
    """Each costs an answer; after a while one is answered again."""
    asker = Asker(loop)
    asker.sent.clear()
    now = loop.now()
    loop.now = lambda: now
    for number in range(200):
        asker.inquiries.received("left", Ask(1, number))
    assert len([sent for _, sent in asker.sent if isinstance(sent, Told)]) == inquiry.BURST
    assert len([sent for _, sent in asker.sent if isinstance(sent, Ask)]) == inquiry.BURST
    loop.now = lambda: now + inquiry.PAUSE
    asker.sent.clear()
    asker.inquiries.received("left", Ask(1, 999))
    assert len(asker.sent) == 2


def test_what_is_shown_has_no_control_characters():
    """A member's words may hold anything."""
    event = {"at": 1.0, "what": "x\x1b[2J", "reason": "a\nb"}
    (line,) = lines({"members": [{"node": "b", "events": [event]}], "silent": []})
    assert line.isprintable()
