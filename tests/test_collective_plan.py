"""The plans: every rank's sends and receives fit together, for all small rings, in any order."""

import itertools
import random
from collections import deque

import pytest

from ringd.collective.chain_plans import chain_all_reduce
from ringd.collective.plan import MIN_CHUNK_BYTES, Combine, Place, Send, Task
from ringd.collective.ring_plans import ring_all_reduce

KIB = 1024
MIB = 1024 * KIB

WAYS = [pytest.param(ring_all_reduce, id="ring"), pytest.param(chain_all_reduce, id="chain")]
SMALL = [
    pytest.param(size, itemsize, id=f"{size}-{itemsize}B")
    for size in range(1, 9)
    for itemsize in (2, 4)
]
COUNTS = (*range(20), 31, 64, 97)
CHUNKS = (4, 12, 256 * KIB)


def plans(way, count, size, chunk_bytes, itemsize=4, *, accumulator_itemsize=4):
    """Return the plans of all ranks."""
    return [
        way(Task(count, itemsize, accumulator_itemsize, size, rank, chunk_bytes))
        for rank in range(size)
    ]


def rings(way, size, itemsize, counts=COUNTS):
    """Return the plans of all ranks for each of many lengths of tensors and chunks."""
    return [
        plans(way, count, size, chunk_bytes, itemsize)
        for count, chunk_bytes in itertools.product(counts, CHUNKS)
    ]


class Member:
    """One rank's memory while it carries out its plan; an element is the ranks that it is made of.

    None stands for bytes of which nobody knows what they are.
    """

    def __init__(self, plan):
        self.plan = plan
        task = plan.task
        self.own = [(task.rank,)] * task.count
        self.target = [None] * task.count
        self.scratch = {}  # by the receive that fills it
        self.next = self.sent = self.received = 0
        self.leaving = deque()  # sends, and what was to be sent
        self.wire = deque()  # to the right neighbour
        self.arriving = None

    def read(self, send):
        """Return what stands where the chunk is sent from."""
        if send.place is Place.SCRATCH:
            return self.scratch[send.after - 1]
        whole = self.own if send.place is Place.SOURCE else self.target
        return whole[send.start : send.stop]

    def may_start(self):
        """Whether the next chunk may be sent."""
        sends = self.plan.sends
        return self.next < len(sends) and sends[self.next].after <= self.received

    def start(self):
        """Begin to send a chunk."""
        send = self.plan.sends[self.next]
        self.next += 1
        elements = list(self.read(send))
        assert None not in elements
        if send.place is not Place.SCRATCH and self.plan.task.wide:
            # What travels in the tensor's own dtype is exact in it: an input, or a result.
            assert {len(ranks) for ranks in elements} <= {1, self.plan.task.size}
        self.leaving.append((send, elements))

    def leave(self):
        """Let the last byte of a chunk go; until then it must have stood as it was."""
        send, elements = self.leaving.popleft()
        assert self.read(send) == elements
        if send.place is Place.SCRATCH:
            del self.scratch[send.after - 1]
        self.wire.append(elements)
        self.sent += 1

    def begin(self, left):
        """Let the first bytes of a chunk come in, which spoils what stood there."""
        receive = self.plan.receives[self.received]
        assert receive.after <= self.sent
        self.arriving = left.wire.popleft()
        nothing = [None] * (receive.stop - receive.start)
        assert len(self.arriving) == len(nothing)
        if receive.place is Place.SCRATCH:
            self.scratch[self.received] = nothing
        else:
            self.target[receive.start : receive.stop] = nothing

    def arrive(self):
        """Let the last byte of a chunk come in, and combine it."""
        receive = self.plan.receives[self.received]
        elements, own = self.arriving, self.own[receive.start : receive.stop]
        self.arriving = None
        if receive.combine is not Combine.STORE:
            elements = [came + mine for came, mine in zip(elements, own, strict=True)]
        place = receive.place
        if receive.combine is Combine.ADD and self.plan.task.wide:
            self.scratch[self.received] = elements
        else:
            self.target[receive.start : receive.stop] = elements
            if place is Place.SCRATCH:
                del self.scratch[self.received]
        self.received += 1

    @property
    def finished(self):
        """Whether nothing is left to do."""
        return self.received == len(self.plan.receives) and self.sent == len(self.plan.sends)


def moves(members):
    """Return all that can happen next."""
    found = [(member.start,) for member in members if member.may_start()]
    found += [(member.leave,) for member in members if member.leaving]
    for rank, member in enumerate(members):
        if member.arriving is not None:
            found.append((member.arrive,))
        elif members[rank - 1].wire:
            found.append((member.begin, members[rank - 1]))
    return found


def run(ring, seed):
    """Carry the plans out, in a random order of events; return the members."""
    members = [Member(plan) for plan in ring]
    chosen = random.Random(seed)
    while possible := moves(members):
        act, *arguments = chosen.choice(possible)
        act(*arguments)
    return members


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_a_chunk_is_received_as_it_is_sent(way, size, itemsize):
    """What a rank sends as chunk i is what its right neighbour receives as chunk i."""
    for ring in rings(way, size, itemsize):
        for left, right in zip(ring, ring[1:] + ring[:1], strict=True):
            assert len(right.receives) == len(left.sends)
            for receive, send in zip(right.receives, left.sends, strict=True):
                assert (receive.start, receive.stop) == (send.start, send.stop)
                assert receive.nbytes == send.nbytes
                assert (receive.place is Place.SCRATCH) == (send.place is Place.SCRATCH)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_every_plan_ends_with_the_same_sums_whatever_happens_first(way, size, itemsize):
    """In any order of events: no standstill, nothing overwritten before it left, each rank once."""
    for seed, ring in enumerate(rings(way, size, itemsize, counts=(0, 1, size - 1, 7, 24))):
        members = run(ring, seed)
        count = ring[0].task.count
        assert [member.finished for member in members] == [True] * size
        assert [member.scratch for member in members] == [{}] * size
        if size == 1:
            continue
        for member in members:
            assert member.target == members[0].target
        ranks = list(range(size))
        assert [sorted(element) for element in members[0].target] == [ranks] * count


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_member_that_sends_nothing_keeps_no_other_from_receiving(way, itemsize):
    """Whatever is on the wire can be taken off it."""
    for size, stalled in itertools.product((2, 3, 5), range(5)):
        members = [Member(plan) for plan in plans(way, 24, size, 12, itemsize)]
        stopped = members[stalled % size]
        while possible := [move for move in moves(members) if move != (stopped.start,)]:
            act, *arguments = possible[0]
            act(*arguments)
        assert not any(member.wire for member in members)
        assert not any(member.leaving for member in members)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_a_result_waits_until_what_it_is_made_of_has_left(way, size, itemsize):
    """A peer that is confused, and too early, is found before it overwrites anything."""
    for plan in itertools.chain.from_iterable(rings(way, size, itemsize, counts=(24,))):
        results = [r for r in plan.receives if r.combine is Combine.STORE]
        for receive in results:
            made_of = [
                index
                for index, send in enumerate(plan.sends)
                if (send.start, send.stop) == (receive.start, receive.stop)
                and (send.after == 0 or plan.receives[send.after - 1].combine is Combine.ADD)
            ]
            assert made_of == [receive.after - 1]


@pytest.mark.parametrize("size", range(2, 9))
def test_a_ring_adds_from_the_segments_rank_on(size):
    """Segment s is added in the order s, s + 1, ... n - 1, 0, ..."""
    members = run(plans(ring_all_reduce, size * 3, size, 4 * KIB), seed=size)
    turned = [tuple((s + i) % size for i in range(size)) for s in range(size)]
    assert members[0].target == [order for order in turned for _ in range(3)]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("size", range(2, 9))
def test_a_chain_adds_in_the_order_of_ranks(size, itemsize):
    """Each element, wherever it stands and however long the tensor and the chunks are."""
    for seed, ring in enumerate(rings(chain_all_reduce, size, itemsize, counts=(1, 5, 24))):
        for member in run(ring, seed):
            assert member.target == [tuple(range(size))] * ring[0].task.count


@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_the_segments_are_balanced_and_cover_the_tensor(size, itemsize):
    """Chunks of all segments tile 0..count; segments, and chunks of one, differ by at most 1."""
    for ring in rings(ring_all_reduce, size, itemsize):
        if size == 1:
            assert ring[0].sends == ring[0].receives == ()
            continue
        segments = [[s for s in plan.sends if s.place is Place.SOURCE] for plan in ring]
        edges = [(c.start, c.stop) for segment in segments for c in segment]
        assert edges[0][0] == 0
        assert edges[-1][1] == ring[0].task.count
        assert [start for start, _ in edges[1:]] == [stop for _, stop in edges[:-1]]
        lengths = [segment[-1].stop - segment[0].start for segment in segments]
        assert max(lengths) - min(lengths) <= 1
        for segment in segments:
            parts = [c.stop - c.start for c in segment]
            assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("size", range(2, 9))
def test_bytes_over_a_link(size):
    """A ring carries 2(n-1)/n of the tensor over each link, a chain twice the tensor at most."""
    count = 840 * 8  # whole segments and chunks at every size
    for ring, chain in zip(
        plans(ring_all_reduce, count, size, 4 * KIB),
        plans(chain_all_reduce, count, size, 4 * KIB),
        strict=True,
    ):
        assert sum(send.nbytes for send in ring.sends) == 4 * count * 2 * (size - 1) // size
        rank = chain.task.rank
        times = 2 if rank < size - 2 else 1
        assert sum(send.nbytes for send in chain.sends) == 4 * count * times


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", range(2, 9))
def test_only_partial_results_are_wide(way, size):
    """Inputs and results travel in the tensor's own dtype, partial results in the accumulator's."""
    for ring in (plans(way, 1000, size, 256, itemsize=2), plans(way, 1000, size, 256)):
        task = ring[0].task
        for plan, member in zip(ring, run(ring, size), strict=True):
            assert member.finished
            for send in plan.sends:
                wide = send.place is Place.SCRATCH
                assert send.nbytes == (send.stop - send.start) * (4 if wide else task.itemsize)
                assert not (wide and task.itemsize == 4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("itemsize", "accumulator"), [(1, 1), (2, 4), (4, 4), (8, 8), (16, 16)])
def test_no_chunk_is_longer_than_asked(way, itemsize, accumulator):
    """chunk_bytes is a limit, also for wide chunks and for sizes that do not divide."""
    for size, chunk_bytes, count in itertools.product(
        (2, 3, 5), (16, 100, 4096), (1, 77, 3000, 4099)
    ):
        for plan in plans(
            way, count, size, chunk_bytes, itemsize, accumulator_itemsize=accumulator
        ):
            assert max(send.nbytes for send in plan.sends) <= chunk_bytes


@pytest.mark.parametrize(
    ("way", "nbytes", "size", "expected"),
    [
        (ring_all_reduce, 0, 2, 1),
        (ring_all_reduce, 40 * KIB, 2, 1),
        (ring_all_reduce, 2 * 127 * KIB, 2, 1),
        (ring_all_reduce, 2 * 128 * KIB, 2, 2),
        (ring_all_reduce, 4 * 192 * KIB, 4, 2),
        (ring_all_reduce, 1 * MIB, 2, 2),
        (ring_all_reduce, 2 * MIB, 2, 2),
        (ring_all_reduce, 2 * MIB + 8, 2, 3),
        (ring_all_reduce, 64 * MIB, 4, 32),
        (chain_all_reduce, 0, 3, 1),
        (chain_all_reduce, 127 * KIB, 3, 1),
        (chain_all_reduce, 128 * KIB, 3, 2),
        (chain_all_reduce, 512 * KIB, 3, 8),
        (chain_all_reduce, 4 * MIB, 3, 8),
        (chain_all_reduce, 64 * MIB, 4, 128),
    ],
)
def test_the_number_of_chunks_follows_the_size(way, nbytes, size, expected):
    """512 KiB at most; as many as the way needs to overlap, as long as they keep 64 KiB."""
    plan = way(Task(nbytes // 4, 4, 4, size, 0))
    assert [send.place for send in plan.sends].count(Place.SOURCE) == expected


@pytest.mark.parametrize("way", WAYS)
def test_two_machines_cut_two_bytes_an_element_as_any_others(way):
    """What each of them hands over travels as it is, and the result, so a chunk has its length."""
    count = 8 * MIB
    for rank in range(2):
        plan = way(Task(count, 2, 4, 2, rank))
        assert {each.nbytes for each in plan.sends + plan.receives} == {512 * KIB}
        assert {each.stop - each.start for each in plan.sends} == {256 * KIB}
    # Several inputs of a machine, or of a third one, are added up in between.
    for task in (Task(count, 2, 4, 2, 1, inputs=4), Task(count, 2, 4, 3, 1)):
        sends = way(task).sends
        assert max(each.stop - each.start for each in sends) <= 128 * KIB
        assert 4 * (sends[-1].stop - sends[-1].start) <= 512 * KIB


@pytest.mark.parametrize("way", WAYS)
def test_small_chunks_keep_their_floor(way):
    """Splitting for overlap never goes below 64 KiB."""
    for count in range(1, 4 * MIB // 4, 9973):
        first = [s for s in way(Task(count, 4, 4, 3, 0)).sends if s.place is Place.SOURCE]
        if len(first) > 1:
            assert min(send.nbytes for send in first) >= MIN_CHUNK_BYTES - 4


@pytest.mark.parametrize("way", WAYS)
def test_a_run_beyond_4_gib_is_planned_in_python_integers(way):
    """Element numbers never overflow."""
    count = 5 * 2**30 + 1
    plan = way(Task(count, 4, 4, 3, 2))
    assert max(receive.stop for receive in plan.receives) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 4, 4, 2, 0, 64), "count must not be negative, but is -1"),
        ((1, 4, 4, 2, 2, 64), "rank 2 is not in a ring of 2"),
        ((1, 4, 4, 2, -1, 64), "rank -1 is not in a ring of 2"),
        ((1, 4, 4, 0, 0, 64), "rank 0 is not in a ring of 0"),
        ((1, 0, 4, 2, 0, 64), "given: 0, 4, 64"),
        ((1, 4, 2, 2, 0, 64), "given: 4, 2, 64"),
        ((1, 4, 4, 2, 0, 3), "given: 4, 4, 3"),
    ],
)
def test_a_senseless_task_is_refused(arguments, message):
    """The values that make no ring are named."""
    with pytest.raises(ValueError, match=message):
        Task(*arguments)


@pytest.mark.parametrize("way", WAYS)
def test_a_plan_is_a_value(way):
    """Equal tasks give equal plans, and none can be changed."""
    plan = way(Task(10, 4, 4, 2, 0))
    assert plan == way(Task(10, 4, 4, 2, 0))
    stop = 5 if way is ring_all_reduce else 10
    assert plan.sends[0] == Send(0, Place.SOURCE, 0, stop, 4 * stop)
    with pytest.raises(AttributeError):
        plan.task.count = 11


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 640, 1000])
def test_encoded_chunks_are_cut_between_blocks(count):
    """So that what values share with their block does not depend on the chunks."""
    task = Task(count, 4, 4, 3, 0, 1024, wire="int8")
    for parts in range(1, 8):
        found = task.pieces(range(count), parts)
        assert [at for part in found for at in part] == list(range(count))
        assert all(part.start % 64 == 0 or part.start == count for part in found)
        sizes = [-(-len(part) // 64) for part in found]
        assert max(sizes) - min(sizes) <= 1


def test_a_chunk_has_room_for_a_block():
    """Else nothing could be encoded."""
    with pytest.raises(ValueError, match="a chunk of 255 B has no room for a block to encode"):
        Task(100, 4, 4, 2, 0, 255, wire="int8")
