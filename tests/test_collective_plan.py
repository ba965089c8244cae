"""The plan: every rank's sends and receives fit together, for all small rings."""

import itertools

import pytest

from ringd.collective.plan import MIN_CHUNK_BYTES, ChunkSpec, RingPlan

KIB = 1024
MIB = 1024 * KIB


def plans(count, size, chunk_bytes, itemsize=4, accumulator_itemsize=4):
    """Return the plans of all ranks."""
    return [
        RingPlan(count, itemsize, accumulator_itemsize, size, rank, chunk_bytes)
        for rank in range(size)
    ]


SMALL = [
    pytest.param(size, itemsize, id=f"{size}-{itemsize}B")
    for size in range(1, 9)
    for itemsize in (2, 4)
]
COUNTS = (*range(20), 31, 64, 97)
CHUNKS = (4, 12, 256 * KIB)


@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_a_chunk_is_received_as_it_is_sent(size, itemsize):
    """What a rank sends as chunk i is what its right neighbour receives as chunk i."""
    for count, chunk_bytes in itertools.product(COUNTS, CHUNKS):
        ring = plans(count, size, chunk_bytes, itemsize)
        for left, right in zip(ring, ring[1:] + ring[:1], strict=True):
            assert right.chunks == left.chunks
            for i in range(left.chunks):
                assert right.receives[i] == left.sends[i]


@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_what_is_sent_was_received_k_chunks_before(size, itemsize):
    """From the second step on, a rank sends the range that it received one step earlier."""
    for count, chunk_bytes in itertools.product(COUNTS, CHUNKS):
        for plan in plans(count, size, chunk_bytes, itemsize):
            k = plan.chunks_per_segment
            for i in range(k, plan.chunks):
                sent, earlier = plan.sends[i], plan.receives[i - k]
                assert (sent.start, sent.stop) == (earlier.start, earlier.stop)


@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_the_segments_are_balanced_and_cover_the_tensor(size, itemsize):
    """Chunks of all segments tile 0..count; segments, and chunks of one, differ by at most 1."""
    for count, chunk_bytes in itertools.product(COUNTS, CHUNKS):
        ring = plans(count, size, chunk_bytes, itemsize)
        if size == 1:
            assert ring[0].chunks == 0
            continue
        k = ring[0].chunks_per_segment
        segments = [[plan.sends[i] for i in range(k)] for plan in ring]
        edges = [(c.start, c.stop) for segment in segments for c in segment]
        assert edges[0][0] == 0
        assert edges[-1][1] == count
        assert [start for start, _ in edges[1:]] == [stop for _, stop in edges[:-1]]
        lengths = [segment[-1].stop - segment[0].start for segment in segments]
        assert max(lengths) - min(lengths) <= 1
        for segment in segments:
            parts = [c.stop - c.start for c in segment]
            assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize(("size", "itemsize"), SMALL)
def test_every_contribution_is_added_once(size, itemsize):
    """Running the plan on sets of ranks gives the full set everywhere, each rank added once."""
    for count, chunk_bytes in itertools.product((0, 1, 7, 24), CHUNKS):
        ring = plans(count, size, chunk_bytes, itemsize)
        have = [[[rank] for _ in range(count)] for rank in range(size)]
        for i in range(ring[0].chunks):
            moving = [
                [list(have[plan.rank][e]) for e in range(plan.sends[i].start, plan.sends[i].stop)]
                for plan in ring
            ]
            for plan in ring:
                chunk = plan.receives[i]
                for e, came in zip(
                    range(chunk.start, chunk.stop), moving[plan.rank - 1], strict=True
                ):
                    reduce = chunk.step < size - 1
                    have[plan.rank][e] = [*came, plan.rank] if reduce else came
        for rank in range(size):
            for e in range(count):
                assert have[rank][e] == have[0][e]
                assert sorted(have[rank][e]) == list(range(size))


def test_the_order_of_the_sum_is_the_segment_number_and_rightwards():
    """Segment s is sent first by rank s and completed by rank s - 1."""
    for size in range(2, 9):
        for plan in plans(size * 3, size, 4 * KIB):
            first, complete = plan.sends[0], plan.receives[size - 2]
            assert first.start == plan.rank * 3
            assert complete.start == (plan.rank + 1) % size * 3


@pytest.mark.parametrize("size", range(2, 9))
def test_only_partial_results_are_wide(size):
    """Inputs (step 0) and results (from step n-1) travel in the tensor's own dtype."""
    for plan in plans(1000, size, 256, itemsize=2, accumulator_itemsize=4):
        for i in range(plan.chunks):
            chunk = plan.sends[i]
            assert chunk.step == i // plan.chunks_per_segment
            assert chunk.wide == (1 <= chunk.step <= size - 2)
            assert chunk.nbytes == (chunk.stop - chunk.start) * (4 if chunk.wide else 2)


@pytest.mark.parametrize("size", range(2, 9))
def test_equal_dtypes_are_never_wide(size):
    """Where partial results have the tensor's dtype there is one form on the wire."""
    for plan in plans(1000, size, 256):
        assert not any(plan.sends[i].wide for i in range(plan.chunks))


@pytest.mark.parametrize(("itemsize", "accumulator"), [(1, 1), (2, 4), (4, 4), (8, 8), (16, 16)])
def test_no_chunk_is_longer_than_asked(itemsize, accumulator):
    """chunk_bytes is a limit, also for wide chunks and for sizes that do not divide."""
    for size, chunk_bytes, count in itertools.product(
        (2, 3, 5), (16, 100, 4096), (1, 77, 3000, 4099)
    ):
        plan = RingPlan(count, itemsize, accumulator, size, 0, chunk_bytes)
        assert max(plan.sends[i].nbytes for i in range(plan.chunks)) <= chunk_bytes


@pytest.mark.parametrize(
    ("nbytes", "size", "expected"),
    [
        (0, 2, 1),
        (40 * KIB, 2, 1),
        (2 * 63 * KIB, 2, 1),
        (2 * 64 * KIB, 2, 2),
        (4 * 96 * KIB, 4, 2),
        (1 * MIB, 2, 2),
        (2 * MIB, 2, 2),
        (2 * MIB + 8, 2, 3),
        (64 * MIB, 4, 32),
    ],
)
def test_the_number_of_chunks_follows_the_size(nbytes, size, expected):
    """512 KiB at most; 2 chunks or more per segment as long as they keep 32 KiB."""
    plan = RingPlan(nbytes // 4, 4, 4, size, 0)
    assert plan.chunks_per_segment == expected
    assert plan.chunks == 2 * (size - 1) * expected


def test_small_chunks_keep_their_floor():
    """Splitting for overlap never goes below 32 KiB."""
    for count in range(1, 4 * MIB // 4, 9973):
        plan = RingPlan(count, 4, 4, 3, 0)
        if plan.chunks_per_segment > 1:
            longest = -(-count // 3) * 4
            assert longest // plan.chunks_per_segment >= MIN_CHUNK_BYTES


def test_a_run_beyond_4_gib_is_planned_in_python_integers():
    """Element numbers never overflow."""
    plan = RingPlan(5 * 2**30 + 1, 4, 4, 3, 2)
    last = [c for i in range(plan.chunks_per_segment) for c in [plan.sends[i]]][-1]
    assert last.stop == 5 * 2**30 + 1


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
def test_a_senseless_plan_is_refused(arguments, message):
    """The values that make no ring are named."""
    with pytest.raises(ValueError, match=message):
        RingPlan(*arguments)


def test_a_plan_is_a_value():
    """Equal arguments give equal plans and chunks, and neither can be changed."""
    assert RingPlan(10, 4, 4, 2, 1) == RingPlan(10, 4, 4, 2, 1)
    assert RingPlan(10, 4, 4, 2, 1).receives[0] == ChunkSpec(0, 5, 0, wide=False, nbytes=20)
    with pytest.raises(AttributeError):
        RingPlan(10, 4, 4, 2, 1).count = 11
