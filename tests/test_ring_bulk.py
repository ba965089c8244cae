"""Large ops over parts of a ring: chunks pass members, and credits bound what is under way."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest

from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.layout import Layout
from ringd.collective.reduction import Reduction
from ringd.collective.view import View
from ringd.groups.channels import Key, pair
from ringd.observe.counters import FOR_NO_CALL, Counters
from ringd.ring.bulk import FAR, Bulk
from ringd.wire.link.frames import FrameError, FrameType, Header

CHUNK = 64
FLOAT32 = np.dtype(np.float32)


def stale(counters):
    """Return how many chunks came for no op."""
    return counters.dropped_frames[FOR_NO_CALL]


class Op:
    """An all-reduce of a group: its inputs and results by rank."""

    def __init__(self, places, count, key):
        self.places = places
        self.key = key
        self.inputs = [np.arange(count, dtype=FLOAT32) + 1000 * rank for rank in range(len(places))]
        self.results = [np.zeros(count, FLOAT32) for _ in places]
        self.ended = set()

    def right(self):
        """Whether all ranks have the sum."""
        expected = np.sum(self.inputs, axis=0)
        return all(np.array_equal(result, expected) for result in self.results)


class Members:
    """The bulks of all members of a ring, and the links between them; nothing happens by itself.

    A link takes a chunk only when it was told that there may be one, like a real one.
    """

    def __init__(self, size, on_way=0.0):
        self.size = size
        self.ops = {}
        self.later = []
        self.counters = [Counters() for _ in range(size)]
        self.bulks = [
            Bulk(
                member,
                chunk_bytes=CHUNK,
                checksum=True,
                by_rank=False,
                on_finished=partial(self._ended, member),
                send=partial(self._send_credit, member),
                defer=self.later.append,
                on_way=lambda _side, _gid: on_way,
                counters=self.counters[member],
            )
            for member in range(size)
        ]
        for bulk in self.bulks:
            bulk.generation = 3
        self.kicked = [False] * size
        self.leaving = [None] * size
        """By member, the chunk that it sends to its right."""
        self.wire = [deque() for _ in range(size)]
        """By member, what is on its way to its right."""
        self.credits = [deque() for _ in range(size)]
        """By member, what is on its way to its left."""
        self.granted = []
        """All credits that were sent: (receiver, sender, how many chunks)."""
        self.most = {}
        """By op and receiver, the most chunks that were under way to it at once."""
        self.sent = {}
        self.passed = [0] * size
        """By member, the chunks of others that it sent on."""
        self.stuck = set()
        """Members whose link to the right takes nothing."""

    def start(self, places, count=2000, key=(1, 0), members=None):
        """Start an op on the members of its ranks, or some of them."""
        op = self.ops.setdefault(key, Op(places, count, key))
        call = Call("all_reduce", "sum", "float32", (count,), "")
        names = tuple(map(str, places))
        for rank, member in enumerate(places):
            if members is None or member in members:
                view = View(names, rank, places, self.size)
                reduction = Reduction("sum", FLOAT32, len(places))
                source, target = op.inputs[rank], op.results[rank]
                calls = [call] * len(places)
                layout = Layout.of(places, member)
                self.bulks[member].start(key, view, layout, calls, reduction, [source], [target])
                self.kicked[member] = True
        return op

    def _ended(self, member, gid, seq):
        self.ops[gid, seq].ended.add(member)

    def _send_credit(self, member, side, header):
        assert (side, header.type) == ("left", FrameType.CREDIT)
        self.granted.append((header.origin, header.until, header.index))
        self.credits[member].append(header)

    # --- what can happen --------------------------------------------------------------

    def moves(self):
        """Return all that can happen next."""
        moves = []
        for member in range(self.size):
            if self.leaving[member] is not None:
                moves.append((self.leave, member))
            elif self.kicked[member] and member not in self.stuck:
                moves.append((self.pull, member))
            if self.wire[member]:
                moves.append((self.arrive, member))
            if self.credits[member]:
                moves.append((self.credit, member))
        return moves

    def pull(self, member):
        """The link to the right asks for a chunk."""
        chunk = self.bulks[member].next_chunk("right")
        if chunk is None:
            self.kicked[member] = False
            return
        header, data = chunk
        self.leaving[member] = header, bytes(data)
        if header.origin == member:
            way = header.group, header.seq, header.until
            self.sent[way] = self.sent.get(way, 0) + 1
            self.most[way] = max(self.most.get(way, 0), self.under_way(*way))
        else:
            self.passed[member] += 1

    def leave(self, member):
        """The last byte of a chunk has left."""
        header, data = self.leaving[member]
        self.leaving[member] = None
        self.wire[member].append((header, data))
        self.bulks[member].sent(header)
        self.kicked[member] = True

    def arrive(self, member):
        """A chunk is with the right neighbour."""
        header, data = self.wire[member].popleft()
        right = (member + 1) % self.size
        buffer = self.bulks[right].buffer("left", header)
        if buffer is not None:
            buffer[:] = data
            onward = self.bulks[right].received("left", header)
            if onward is not None:
                assert onward == "right"
                self.kicked[right] = True

    def credit(self, member):
        """A credit is with the left neighbour, for it or for one further on."""
        header = self.credits[member].popleft()
        left = (member - 1) % self.size
        if header.until != left:
            self.credits[left].append(header)
        elif self.bulks[left].credit(header) is not None:
            self.kicked[left] = True

    def run(self, seed):
        """Let things happen in random order until nothing is left to happen."""
        rng = random.Random(seed)
        while (moves := self.moves()) or self.later:
            if not moves or (self.later and rng.random() < 0.5):
                self.later.pop(0)()
                continue
            act, member = rng.choice(moves)
            act(member)
        return self

    # --- what is seen -----------------------------------------------------------------

    def under_way(self, gid, seq, until):
        """Return how many chunks of an op its sender has sent and its receiver not received."""
        progress = self.bulks[until].progress(gid, seq)
        op = self.ops[gid, seq]
        received = 0 if progress is None else progress[0]
        if progress is None and until in op.ended:
            return 0
        return self.sent[gid, seq, until] - received

    def held(self, member):
        """Return how many chunks a member keeps that are for others."""
        lane = self.bulks[member]._lanes["right"]
        return sum(len(passing.chunks) for passing in lane._passing.values())

    def empty(self):
        """Whether no bulk has anything left over."""
        lanes = [lane for bulk in self.bulks for lane in bulk._lanes.values()]
        return not any(lane._ops or lane._passing or lane._turns for lane in lanes) and not any(
            len(bulk) or bulk._passing for bulk in self.bulks
        )


PARTS = pytest.mark.parametrize(
    ("size", "places"),
    [
        (5, (1, 3)),
        (5, (0, 1, 4)),
        (6, (5, 0, 2)),
        (3, (2, 0)),
        (3, (0, 1, 2)),
        (8, (6,)),
    ],
)


@PARTS
def test_a_part_of_a_ring_has_the_right_sum_in_any_order_of_events(size, places):
    """Whatever order the ranks have, and however fast each link and each credit is."""
    for seed in range(12):
        members = Members(size)
        op = members.start(places, count=1500 + seed)
        members.run(seed)
        assert op.right()
        assert op.ended == set(places)
        assert members.empty()


@PARTS
def test_no_more_chunks_are_under_way_than_the_bound(size, places):
    """Between a sender and its receiver, where others lie between."""
    for seed in range(12):
        members = Members(size)
        members.start(places)
        members.run(seed)
        if len(places) < size:
            assert all(most <= FAR for most in members.most.values())


@pytest.mark.parametrize("stuck", [1, 2])
def test_a_slow_link_has_its_member_hold_a_few_chunks_and_no_more(stuck):
    """And the sender goes on when it carries again: it is told of the credit that it lacks."""
    members = Members(5)
    op = members.start((0, 3))
    members.stuck = {stuck}
    members.run(1)
    assert [members.held(member) for member in (1, 2)] == [FAR * (stuck == m) for m in (1, 2)]
    assert members.under_way(1, 0, 3) == FAR
    assert op.ended == set()
    members.stuck = set()
    members.run(2)
    assert op.right()
    assert op.ended == {0, 3}


def test_a_receiver_that_has_not_begun_has_its_sender_stop():
    """What comes for an op that is not here is lost, so it is no more than the bound."""
    members = Members(3)
    members.start((0, 2), members={0})
    members.run(1)
    assert members.sent == {(1, 0, 2): FAR}
    assert stale(members.counters[2]) == FAR


def test_a_credit_is_for_many_chunks():
    """One message for each chunk would cost as much as the chunk's own."""
    members = Members(5)
    members.start((1, 3), count=8000)
    members.run(1)
    chunks = max(index for _, _, index in members.granted)
    assert chunks > 8 * FAR
    for receiver in (1, 3):
        granted = [index for to, _, index in members.granted if to == receiver]
        assert granted == sorted(set(granted))
        assert len(granted) <= chunks / (FAR // 4)


def test_neighbours_need_no_credits():
    """A chunk that no member passes is received where it belongs at once."""
    members = Members(3)
    op = members.start((0, 1, 2), count=8000)
    members.run(1)
    assert op.right()
    assert members.granted == []


@pytest.mark.parametrize(("on_way", "chunks"), [(0.0, 2), (CHUNK, 2), (CHUNK + 1, 3), (1e4, 158)])
def test_as_many_chunks_are_ahead_as_keep_the_link_busy(on_way, chunks):
    """And one that the neighbour works on; behind them wait the small calls of others."""
    members = Members(2, on_way)
    members.start((0, 1), count=(chunks + 50) * 2 * CHUNK // 4, members={0})
    members.run(1)
    assert members.sent[1, 0, 1] == chunks


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_sender_that_begins_late_has_its_credit(monkeypatch, size):
    """Nothing is granted to one that may have yet to begin, and would not hear it."""
    row = replace(kinds.KINDS["all_reduce"], passes=True)
    monkeypatch.setitem(kinds.KINDS, "all_reduce", row)
    for seed in range(6):
        for late in range(size):
            members = Members(size)
            everyone = tuple(range(size))
            members.stuck = {(late - 1) % size}  # nothing comes before what was offered
            members.start(everyone, count=4000, members=set(everyone) - {late})
            members.run(seed)
            assert late not in {sender for _, sender, _ in members.granted}
            op = members.start(everyone, count=4000, members={late})
            members.stuck = set()
            members.run(seed)
            assert op.right()
            assert members.empty()


def test_who_passes_chunks_has_no_part_in_them():
    """It sends them on, and that is all."""
    members = Members(4)
    op = members.start((0, 2))
    members.run(1)
    assert op.right()
    chunks = members.sent[1, 0, 2]
    assert members.passed == [0, chunks, 0, chunks]
    assert [stale(counters) for counters in members.counters] == [0] * 4


def test_groups_over_the_same_member_take_turns():
    """Neither waits for the other, the one that sends there or the one that passes."""
    members = Members(4)
    first = members.start((0, 2), key=(1, 0))
    members.stuck = {1}
    members.run(1)
    second = members.start((1, 3), key=(2, 0))
    left = []
    for _ in range(8):
        members.pull(1)
        left.append(members.leaving[1][0].group)
        members.leave(1)
    assert left == [1, 2] * 4
    members.stuck = set()
    members.run(1)
    assert (first.right(), second.right()) == (True, True)
    assert members.empty()


def test_ops_of_a_group_pass_in_order():
    """Several at once, as a program has them open."""
    for seed in range(6):
        members = Members(5)
        ops = [members.start((1, 4), count=700 + seq, key=(1, seq)) for seq in range(4)]
        members.run(seed)
        assert [op.right() for op in ops] == [True] * 4
        assert members.empty()


# --- losses ---------------------------------------------------------------------------


def test_a_break_takes_what_was_to_pass():
    """Nobody waits for it in the next generation, in which the op runs again."""
    members = Members(4)
    members.start((0, 2))
    members.stuck = {1}
    members.run(1)
    for _ in range(3):
        members.pull(1)
        members.leave(1)
    assert members.held(1) == FAR - 3
    for member, bulk in enumerate(members.bulks):
        bulk.broke()
        bulk.stop(1, 0)
        bulk.generation = 4
        assert members.held(member) == 0
    members.stuck = set()
    again = members.start((0, 2))
    members.run(1)
    assert again.right()
    assert stale(members.counters[2]) == 3
    assert members.empty()


def chunk(**fields):
    """Return the header of a chunk that goes by member 1."""
    fields = {"generation": 3, "group": 1, "seq": 0, "origin": 0, "until": 2, **fields}
    return Header(FrameType.DATA, **{"length": 8, **fields})


def test_a_chunk_of_another_generation_passes_nobody():
    """It is counted and dropped where it comes first."""
    members = Members(4)
    assert members.bulks[1].buffer("left", chunk(generation=2)) is None
    assert stale(members.counters[1]) == 1


def test_a_break_may_come_in_the_midst_of_a_chunk_that_passes():
    """Its rest goes on under the old number, and is dropped by the next member."""
    members = Members(4)
    bulk, following = members.bulks[1], members.bulks[2]
    bulk.buffer("left", chunk())[:] = b"chunk 01"
    bulk.broke()
    bulk.generation = following.generation = 4
    assert bulk.received("left", chunk()) == "right"
    header, _ = bulk.next_chunk("right")
    assert following.buffer("left", header) is None
    assert stale(members.counters[2]) == 1


def test_a_chunk_passes_as_it_came():
    """From either side, byte by byte, with the header that it had."""
    for came, goes in (("left", "right"), ("right", "left")):
        bulk = Members(4).bulks[1]
        bulk.buffer(came, chunk(index=5))[:] = b"chunk 05"
        assert bulk.received(came, chunk(index=5)) == goes
        assert bulk.next_chunk(came) is None
        header, data = bulk.next_chunk(goes)
        assert (header, bytes(data)) == (chunk(index=5), b"chunk 05")
        assert bulk.next_chunk(goes) is None


def test_no_more_of_an_op_passes_than_its_receiver_grants():
    """Who keeps to no credit loses the link; other ops, and what has left, do not count."""
    bulk = Members(4).bulks[1]
    for seq in (0, 1):
        for index in range(FAR):
            bulk.buffer("left", chunk(seq=seq, index=index))
            bulk.received("left", chunk(seq=seq, index=index))
    with pytest.raises(FrameError, match=f"more than {FAR} chunks of one op"):
        bulk.buffer("left", chunk(index=FAR))
    assert bulk.next_chunk("right") is not None
    assert bulk.buffer("left", chunk(index=FAR)) is not None


def test_what_passes_is_bounded_as_a_whole():
    """In bytes, however many ops there are; and no chunk is longer than all are."""
    bulk = Members(4).bulks[1]
    bulk._most_passing = 4096
    for seq in range(8):
        bulk.buffer("left", chunk(seq=seq))
        bulk.received("left", chunk(seq=seq))
    with pytest.raises(FrameError, match="are to pass here already"):
        bulk.buffer("left", chunk(seq=8, length=CHUNK))
    with pytest.raises(FrameError, match=f"of {CHUNK} at most"):
        bulk.buffer("left", chunk(length=CHUNK + 1))
    bulk.broke()
    assert bulk.buffer("left", chunk(seq=200)) is not None


@pytest.mark.parametrize(
    "change", [{"generation": 2}, {"group": 9}, {"seq": 1}, {"index": 3}], ids=str
)
def test_a_credit_that_is_late_changes_nothing(change):
    """Of another generation or op, or below one that came before."""
    members = Members(3)
    members.start((0, 2))
    bulk = members.bulks[0]
    before = bulk._flows[1, 0].transfer.credit
    fields = {"generation": 3, "group": 1, "seq": 0, "origin": 2, "until": 0, "index": 99}
    bulk.credit(Header(FrameType.CREDIT, **{**fields, **change}))
    assert before == bulk._flows[1, 0].transfer.credit == FAR


def test_a_credit_where_none_is_needed_is_ignored():
    """It cannot stop a sender that keeps to none."""
    members = Members(3)
    members.start((0, 1, 2))
    header = Header(FrameType.CREDIT, generation=3, group=1, seq=0, origin=2, until=0, index=1)
    assert members.bulks[0].credit(header) is None
    assert members.bulks[0]._flows[1, 0].transfer.credit is None


def test_a_chunk_out_of_order_costs_the_link():
    """A neighbour that is out of step is not believed."""
    members = Members(3)
    members.start((0, 2))
    with pytest.raises(FrameError, match="chunk 7 of"):
        members.bulks[0].buffer("left", chunk(index=7, until=0, origin=2))


@pytest.mark.parametrize(
    ("places", "side"), [((0, 1), "left"), ((0, 2), "right"), ((2, 0), "left")], ids=str
)
def test_a_credit_for_messages_goes_back_the_way_that_they_came(places, side):
    """The longer way may lead over a member that is not in the ring yet, and drops it."""
    sent, count = [], 16 * FAR
    bulk = Members(3).bulks[places[1]]
    bulk._send = lambda *credit: sent.append(credit)
    view = pair(View(("a", "b"), 1, places, 3), Key(0, 1, 0))
    calls = [Call("message", "", "uint8", (CHUNK * count,), "")] * 2
    empty, target = np.empty(0, np.uint8), np.empty(CHUNK * count, np.uint8)
    bulk.start((1, 0), view, Layout.of(places, places[1]), calls, None, [empty], [target])
    for index in range(FAR):
        way = {"index": index, "until": places[1], "origin": places[0]}
        header = msgspec.structs.replace(chunk(**way), length=CHUNK)
        bulk.buffer(side, header)[:] = bytes(CHUNK)
        bulk.received(side, header)
    assert {(to, header.until) for to, header in sent} == {(side, places[0])}
