"""Calls with a wire: the same bits at all ranks, those that the formats give, within the bound."""

import itertools

import numpy as np
import pytest
from codeckit import BLOCK, error_bound, magnitudes, travelled
from transferkit import Party, expected, roots, tensors_of

from ringd.collective import kinds
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.codec import CODECS
from ringd.collective.kinds import KINDS
from ringd.collective.layout import Layout
from ringd.collective.plan import MAX_PASSING
from ringd.collective.transfer import ScratchPool

WIRES = pytest.mark.parametrize("wire", CODECS)
NARROW = [name for name, kind in KINDS.items() if kind.narrows]
REDUCING = [name for name in NARROW if KINDS[name].reduces]
MOVING = [name for name in NARROW if not KINDS[name].reduces]
PLACES = ((0,), (0, 0), (0, 1), (1, 0, 2), (0, 0, 1, 1), (1, 0, 1, 0), (0, 1, 2, 3, 4))
COUNTS = (0, 1, 40, 333)
LAYOUTS = pytest.mark.parametrize("places", PLACES, ids=str)


def call_of(name, count, size, root, wire, *, operation="sum"):
    """Return a call of this kind, of *count* elements for each rank where it is divided."""
    kind = KINDS[name]
    shape = (size, count) if kind.divides else (count,)
    tensors, operation = tensors_of(name, count), operation if kind.reduces else ""
    call = Call(name, operation, "float32", shape, "", root, (), wire, tensors)
    kinds.check(call, size)
    return call


def values(call, size, seed):
    """Return what the ranks hand over."""
    rng = np.random.default_rng(seed)
    counts = [kinds.source_count(call, rank, size) for rank in range(size)]
    return [rng.normal(0, 10**rank, n).astype(np.float32) for rank, n in enumerate(counts)]


def run(call, inputs, places, seed=0, **settings):
    """Carry the call out; return what the ranks are given."""
    ring = Party([call] * len(inputs), inputs, places=places, **{"chunk_bytes": 256, **settings})
    ring.run(seed)
    assert all(t.finished for t in ring.transfers)
    assert not any(t._buffers or t._outgoing for t in ring.transfers)
    assert [x.tobytes() for x in ring.inputs] == [x.tobytes() for x in inputs]
    return [target.tobytes() for target in ring.targets]


def folded(wire, inputs):
    """Return the sum of machines' *inputs* in this order, encoded on each hop and in the end.

    *inputs*: by machine, those of its ranks.
    """
    partial = None
    for first, *others in inputs:
        partial = first if partial is None else travelled(wire, partial) + first
        for other in others:
            partial = partial + other
    return travelled(wire, partial)


def promised(call, inputs, places, *, by_rank):
    """Return the whole reduction, of which each rank is given all, a part, or nothing."""
    wire, size, count = call.wire, len(inputs), len(inputs[0])
    machines = Layout.of(places, places[0]).machines
    number = len(machines)
    if number == 1:  # nothing travels
        whole = inputs[0].copy()
        for x in inputs[1:]:
            whole += x
        return whole

    def from_machine(first, part):
        order = [machines[(first + i) % number] for i in range(number)]
        return folded(wire, [[inputs[r][part] for r in ranks] for ranks in order])

    if call.kind == "reduce_scatter":  # each machine's block begins anew
        whole = np.empty(count, np.float32)
        for machine in range(number):
            own = np.concatenate(
                [np.arange(r * count // size, (r + 1) * count // size) for r in machines[machine]]
            )
            whole[own] = from_machine(0 if by_rank else machine + 1, own)
        return whole
    if by_rank or call.kind == "reduce":
        root = next((i for i, ranks in enumerate(machines) if call.root in ranks), -1)
        return from_machine(0 if by_rank else root + 1, slice(None))
    blocks = -(-count // BLOCK[wire])
    ends = [blocks * s // number * BLOCK[wire] for s in range(number + 1)]
    return np.concatenate([from_machine(s, slice(*ends[s : s + 2])) for s in range(number)])


@WIRES
@LAYOUTS
@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("name", REDUCING)
def test_a_reduction_has_the_bits_that_its_hops_give(name, by_rank, places, wire):
    """At all ranks, also those of the machine that completes it, in any order of events."""
    size = len(places)
    for seed, (count, root) in enumerate(itertools.product(COUNTS, roots(name, size))):
        call = call_of(name, count, size, root, wire)
        inputs = values(call, size, seed)
        whole = promised(call, inputs, places, by_rank=by_rank)
        wanted = [x.tobytes() for x in expected(name, inputs, root, whole)]
        assert run(call, inputs, places, seed, by_rank=by_rank) == wanted


@WIRES
@LAYOUTS
@pytest.mark.parametrize("name", MOVING)
def test_what_is_moved_is_the_same_at_its_sender(name, places, wire):
    """It has travelled once, for all; where all ranks are on one machine it does not travel."""
    size = len(places)
    for seed, (count, root) in enumerate(itertools.product(COUNTS, roots(name, size))):
        call = call_of(name, count, size, root, wire)
        inputs = values(call, size, seed)
        arrived = inputs
        if len(set(places)) > 1:
            arrived = [x.copy() for x in inputs]
            for ranks in Layout.of(places, places[0]).machines:
                ends = np.cumsum([len(inputs[rank]) for rank in ranks])[:-1]
                block = travelled(wire, np.concatenate([inputs[rank] for rank in ranks]))
                for rank, x in zip(ranks, np.split(block, ends), strict=True):
                    arrived[rank] = x
        wanted = [x.tobytes() for x in expected(name, arrived, root, None)]
        assert run(call, inputs, places, seed) == wanted


@WIRES
@pytest.mark.parametrize("operation", ["sum", "mean", "min", "max"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_error_is_within_the_bound(size, operation, wire):
    """That of docs/compression.md: an encoding for each machine, and all inputs' magnitudes."""
    exactly = {"sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max}[operation]
    together = {"sum": np.sum, "mean": np.mean}.get(operation, np.max)
    for count in (1, 333, 5000):
        call = call_of("all_reduce", count, size, NO_ROOT, wire, operation=operation)
        inputs = values(call, size, count)
        exact = exactly([x.astype(np.float64) for x in inputs], axis=0)
        found = np.frombuffer(run(call, inputs, range(size), chunk_bytes=4096)[0], np.float32)
        bounds = together([magnitudes(wire, x).astype(np.float64) for x in inputs], axis=0)
        relative = error_bound(wire, [1.0], size, size)
        assert (np.abs(found - exact) <= bounds * float(relative)).all()


@WIRES
@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("name", NARROW)
def test_chunks_do_not_matter(name, by_rank, wire):
    """Whatever their length, each position has its value."""
    for root in roots(name, 3):
        call = call_of(name, 3000, 3, root, wire)
        inputs = values(call, 3, 7)
        found = {
            tuple(run(call, inputs, range(3), by_rank=by_rank, chunk_bytes=length))
            for length in (256, 1000, 4096, 1 << 19)
        }
        assert len(found) == 1


@WIRES
def test_by_rank_a_place_does_not_matter(wire):
    """Beyond the first of a block: values have the bits that they have in a longer tensor."""
    inputs = values(call_of("all_reduce", 640, 3, NO_ROOT, wire), 3, 3)
    for start, count in ((0, 128), (320, 320), (576, 64)):
        part = [x[start : start + count] for x in inputs]
        results = []
        for given in (inputs, part):
            call = call_of("all_reduce", len(given[0]), 3, NO_ROOT, wire)
            results.append(run(call, given, range(3), by_rank=True)[0])
        assert results[1] == results[0][4 * start : 4 * (start + count)]


@WIRES
@pytest.mark.parametrize("name", NARROW)
def test_what_is_not_finite_survives(name, wire):
    """At each rank that is given it; a sum of opposite infinities is the NaN of results."""
    size, nan = 3, np.float32(np.nan)
    for root in roots(name, size):
        call = call_of(name, 99, size, root, wire)
        inputs = [x if len(x) else np.zeros(99, np.float32) for x in values(call, size, 5)]
        for x in inputs:
            x[3::99], x[7::99], x[11::99] = np.inf, -np.inf, nan
        inputs[2][3::99] = -np.inf
        given = [x[: kinds.source_count(call, r, size)] for r, x in enumerate(inputs)]
        reduced = np.array([nan, -np.inf, nan], np.float32)
        for target in run(call, given, range(size)):
            found = np.frombuffer(target, np.float32)
            odd = found[~np.isfinite(found)]
            if KINDS[name].reduces:
                assert odd.view(np.uint32).tolist() == [*reduced.view(np.uint32)][: len(odd)]
            elif len(odd):
                assert {*odd[~np.isnan(odd)]} <= {np.inf, -np.inf}
                assert len(odd) == 3 * len(found) // 99
                assert {*odd.view(np.uint32)[np.isnan(odd)]} == {0x7FC0_0000}


@WIRES
@pytest.mark.parametrize("name", NARROW)
def test_bytes_over_a_link(name, wire):
    """Those of the call without a wire, by the format's share."""
    size, count = 4, 8 * 1024
    for root in roots(name, size):
        carried = {}
        for each in ("", wire):
            call = call_of(name, count, size, root, each)
            inputs = values(call, size, 0)
            ring = Party([call] * size, inputs, 4096).run(0)
            carried[each] = [sum(send.nbytes for send in t.plan.sends) for t in ring.transfers]
        share = CODECS[wire].nbytes(1024) / 4096
        assert carried[wire] == [share * plain for plain in carried[""]]


@WIRES
def test_a_neighbour_that_is_slow_costs_no_memory(wire):
    """What waits for it stands in the result, but for a few chunks."""
    call = call_of("all_reduce", 40_000, 4, NO_ROOT, wire)
    pool = ScratchPool(512, keep=10_000)
    ring = Party([call] * 4, values(call, 4, 1), 512, pool=pool)
    slow, turn = ring.transfers[1], itertools.count()
    while moves := ring.moves():
        for act, rank in moves:  # rank 1 sends a chunk when nothing else is left, or seldom
            if (act, rank) != (ring.start, 1) or len(moves) == 1 or next(turn) % 20 == 0:
                act(rank)
        assert len(slow._buffers) <= MAX_PASSING + 2
    assert all(t.finished for t in ring.transfers)
    assert len({target.tobytes() for target in ring.targets}) == 1
    assert len(pool._free) <= 4 * (MAX_PASSING + 4)


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if k.data and not k.narrows])
def test_other_kinds_have_no_wire(name):
    """Says which have."""
    root = 0 if KINDS[name].rooted else NO_ROOT
    call = Call(name, "", "float32", (2,), "", root, (), "int8")
    with pytest.raises(ValueError, match=f"{name} has no wire; these kinds have: all_reduce, "):
        kinds.check(call, 2)


def test_calls_with_other_wires_do_not_fit_together():
    """And show how they differ."""
    calls = [call_of("all_reduce", 5, 2, NO_ROOT, wire) for wire in ("int8", "")]
    assert kinds.disagreement(calls) == ""
    assert [str(call) for call in calls] == [
        "all_reduce sum float32[5] with wire int8",
        "all_reduce sum float32[5]",
    ]
