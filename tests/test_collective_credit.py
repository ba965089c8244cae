"""How much a machine holds for others is bounded, whatever the pace of its links."""

import itertools
import random

import numpy as np
import pytest
from transferkit import Party, call_of, roots

from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.kinds import KINDS
from ringd.collective.plan import MAX_PASSING

CARRIED = [
    name
    for name, kind in KINDS.items()
    if kind.data and not kind.pair and name != "all_gather_bytes"
]


@pytest.mark.parametrize("name", [name for name in CARRIED if KINDS[name].passes])
@pytest.mark.parametrize("by_rank", [False, True])
def test_what_passes_is_held_within_its_bound(name, by_rank):
    """In any order of events, some links much slower than others: nothing stands still."""
    peak = 0
    for size, seed in itertools.product(range(2, 7), range(5)):
        chosen = random.Random(f"{name} {size} {seed}")
        root = chosen.choice(roots(name, size))
        operation, dtype = ("sum", "float16") if KINDS[name].reduces else ("", "int32")
        count = chosen.choice([40, 200, 600]) * (1 if KINDS[name].divides else 3)
        call = call_of(name, count, size, root, operation=operation, dtype=dtype)
        inputs = [np.ones(kinds.source_count(call, r, size), dtype) for r in range(size)]
        ring = Party([call] * size, inputs, by_rank=by_rank, limited=True)
        pace = {
            (act, rank): chosen.choice([1, 1, 0.01])
            for act in (ring.start, ring.leave, ring.begin, ring.arrive, ring.take_credit)
            for rank in range(size)
        }
        while moves := ring.moves():
            weights = [pace.get(move, 1) for move in moves]
            act, rank = chosen.choices(moves, weights)[0]
            act(rank)
            passing = set(ring.transfers[rank].plan.passing)
            held = len(passing & ring.transfers[rank]._buffers.keys())
            peak = max(peak, held)
        assert [t.finished for t in ring.transfers] == [True] * size
    assert peak == MAX_PASSING


@pytest.mark.parametrize("name", CARRIED)
def test_a_sender_may_begin_with_the_chunks_that_are_always_held(name):
    """Before the first word of its neighbour; of kinds that do not pass, with all of them."""
    size = 5
    operation = "sum" if KINDS[name].reduces else ""
    call = call_of(name, 1000, size, roots(name, size)[0], operation=operation, dtype="float16")
    inputs = [np.ones(kinds.source_count(call, r, size), np.float16) for r in range(size)]
    for transfer in Party([call] * size, inputs).transfers:
        chunks = len(transfer.plan.receives)
        assert transfer.granted >= min(chunks, MAX_PASSING)
        if not KINDS[name].passes:
            assert transfer.granted == chunks


def test_no_chunk_leaves_beyond_the_credit():
    """It can be raised at any time; None is no limit."""
    call = Call("gather", "", "int32", (100,), "", 0)
    inputs = [np.ones(100, np.int32)] * 2
    transfer = Party([call] * 2, inputs).transfers[1]
    number = len(transfer.plan.sends)
    transfer.credit = 2
    assert [transfer.next_send() is not None for _ in range(4)] == [True, True, False, False]
    transfer.credit = 3
    assert [transfer.next_send() is not None for _ in range(2)] == [True, False]
    transfer.credit = None
    assert [transfer.next_send() is not None for _ in range(number)] == [True] * (number - 3) + [
        False
    ] * 3


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("by_rank", [False, True])
def test_machines_that_keep_pace_never_wait_in_a_circle(name, by_rank):
    """Also where each may be a single chunk ahead, and where they have unequal numbers of ranks."""
    for size, seed in itertools.product(range(1, 7), range(6)):
        chosen = random.Random(f"{name} {size} {seed}")
        places = sorted(chosen.choices(range(size), k=size))
        root = chosen.choice(roots(name, size))
        operation, dtype = ("sum", "float16") if KINDS[name].reduces else ("", "int32")
        count = chosen.choice([0, 1, 40, 200, 600])
        call = call_of(name, count, size, root, operation=operation, dtype=dtype)
        inputs = [np.ones(kinds.source_count(call, r, size), dtype) for r in range(size)]
        ring = Party([call] * size, inputs, by_rank=by_rank, places=places)
        for transfer in ring.transfers:
            transfer.keep_pace(chosen.randint(1, 3))
        ring.run(seed)
        assert all(transfer.finished for transfer in ring.transfers)


@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter", "all_gather"])
@pytest.mark.parametrize("ahead", [1, 3])
def test_what_keeps_pace_sends_few_chunks_ahead(name, ahead):
    """Of what it has received; with no bound, the first machine may send all of its input."""
    size = 3
    operation = "sum" if KINDS[name].reduces else ""
    call = call_of(name, 1000, size, roots(name, size)[0], operation=operation)
    inputs = [np.ones(kinds.source_count(call, r, size), np.int32) for r in range(size)]
    ring = Party([call] * size, inputs)
    for transfer in ring.transfers:
        transfer.keep_pace(ahead)
    most = 0
    rng = random.Random(f"{name} {ahead}")
    while moves := ring.moves():
        act, rank = rng.choice(moves)
        act(rank)
        most = max(most, *(t._next - t.received_chunks for t in ring.transfers))
    assert [t.finished for t in ring.transfers] == [True] * size
    assert most == ahead
