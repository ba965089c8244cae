"""Whose chunk goes to a neighbour next."""

from __future__ import annotations

from collections import deque

from ringd.ring.lane import Lane
from ringd.wire.link.frames import FrameType, Header

OWN, OTHER, THIRD = 7, 8, 9
"""Groups."""


class Sender:
    """A lane, and the ops that have chunks for it."""

    def __init__(self):
        self.asked = []
        self.chunks = {}
        self.lane = Lane(self._next_chunk)

    def _next_chunk(self, gid, seq):
        self.asked.append((gid, seq))
        queue = self.chunks.get((gid, seq))
        return (queue.popleft() if queue else None), bool(queue)

    def give(self, gid, seq, count):
        """Let an op have so many more chunks."""
        self.chunks.setdefault((gid, seq), deque()).extend(
            chunk(gid, seq, index) for index in range(count)
        )
        self.lane.queue(gid, seq)

    def pass_on(self, gid, count, seq=0):
        """Have so many chunks come by that are for a member further on."""
        for index in range(count):
            self.lane.pass_on(*chunk(gid, seq, index))

    def take(self, most=100):
        """Return which chunks leave next, in order, as (group, op)."""
        return [(header.group, header.seq) for header in self.headers(most)]

    def headers(self, most=100):
        """Return the headers of the chunks that leave next."""
        left = (self.lane.next() for _ in range(most))
        return [sent[0] for sent in left if sent is not None]

    def empty(self):
        """Whether nothing is left over."""
        return not (self.lane._ops or self.lane._passing or self.lane._turns)


def chunk(gid, seq, index):
    """Return a chunk of one byte."""
    header = Header(FrameType.DATA, 1, group=gid, seq=seq, index=index)
    return header, memoryview(b"x")


def test_a_lane_without_chunks_has_none():
    """As often as it is asked."""
    sender = Sender()
    assert sender.take(3) == []
    sender.lane.queue(OWN, 0)
    assert sender.take(3) == []
    assert sender.empty()


def test_groups_take_turns_chunk_by_chunk():
    """One that has many does not hold up one that has a few, whoever came first."""
    sender = Sender()
    sender.give(OWN, 0, 4)
    sender.give(OTHER, 3, 2)
    sender.give(THIRD, 1, 1)
    groups = [gid for gid, _ in sender.take()]
    assert groups == [OWN, OTHER, THIRD, OWN, OTHER, OWN, OWN]
    assert sender.empty()


def test_what_passes_has_its_turn_like_what_is_sent():
    """And one group that passes is none of another's business."""
    sender = Sender()
    sender.give(OWN, 0, 3)
    sender.pass_on(OTHER, 3)
    sender.pass_on(THIRD, 1)
    groups = [gid for gid, _ in sender.take()]
    assert groups == [OWN, OTHER, THIRD, OWN, OTHER, OWN, OTHER]
    assert sender.empty()


def test_what_passes_keeps_its_order():
    """The receiver takes chunks in the order of their numbers; ops of a group stay as they came."""
    sender = Sender()
    sender.pass_on(OTHER, 2, seq=5)
    sender.pass_on(OTHER, 2, seq=4)
    order = [(header.seq, header.index) for header in sender.headers()]
    assert order == [(5, 0), (5, 1), (4, 0), (4, 1)]


def test_the_oldest_op_of_a_group_goes_first():
    """So ops end in order, however late the older one gets its chunks."""
    sender = Sender()
    sender.give(OWN, 6, 3)
    assert sender.take(1) == [(OWN, 6)]
    sender.give(OWN, 5, 2)
    assert sender.take() == [(OWN, 5), (OWN, 5), (OWN, 6), (OWN, 6)]


def test_a_later_op_goes_while_the_older_one_has_nothing():
    """It waits for what it has yet to receive, and is asked again when it says so."""
    sender = Sender()
    sender.lane.queue(OWN, 5)
    sender.give(OWN, 6, 2)
    assert sender.take(1) == [(OWN, 6)]
    sender.give(OWN, 5, 1)
    assert sender.take() == [(OWN, 5), (OWN, 6)]


def test_an_op_that_has_nothing_is_asked_once():
    """Until it is queued again; however often it was queued before."""
    sender = Sender()
    for _ in range(3):
        sender.lane.queue(OWN, 5)
    assert sender.take(4) == []
    assert sender.asked == [(OWN, 5)]
    sender.lane.queue(OWN, 5)
    assert sender.take(4) == []
    assert sender.asked == [(OWN, 5)] * 2


def test_a_group_that_comes_back_waits_for_its_turn():
    """It is behind those that were there."""
    sender = Sender()
    sender.give(OWN, 0, 1)
    sender.give(OTHER, 0, 3)
    assert sender.take(2) == [(OWN, 0), (OTHER, 0)]
    sender.take(1)  # the first group has nothing left, and is forgotten
    sender.give(OWN, 1, 1)
    sender.pass_on(THIRD, 1)
    assert sender.take() == [(OTHER, 0), (OWN, 1), (THIRD, 0)]
    assert sender.empty()


def test_a_break_takes_what_was_to_pass_and_nothing_else():
    """The own ops know themselves when they end; what passes belongs to others."""
    sender = Sender()
    sender.give(OWN, 0, 2)
    sender.pass_on(OTHER, 3)
    sender.lane.clear_passing()
    assert sender.take() == [(OWN, 0)] * 2
    assert sender.empty()
    sender.pass_on(OTHER, 1, seq=4)
    assert sender.take() == [(OTHER, 4)]


def test_all_streams_together_have_the_turn_of_one_group():
    """And take turns among themselves."""
    sender = Sender()
    sender.give(OWN, 0, 3)
    for number in (100, 101, 102):
        for index in range(2):
            header = Header(FrameType.STREAM, 1, group=number, index=index)
            sender.lane.carry(header, memoryview(b"x"))
    left = [group for group, _ in sender.take()]
    assert left == [OWN, 100, OWN, 101, OWN, 102, 100, 101, 102]
    assert sender.empty()


def test_what_streams_say_is_forgotten_with_the_ring():
    """It is said again when there is a new one."""
    sender = Sender()
    sender.lane.carry(Header(FrameType.STREAM, 1, group=5), memoryview(b"x"))
    sender.lane.clear_passing()
    assert sender.take() == []
    assert sender.empty()
