"""Several ranks on a machine, in any order: each is given what it would be given on its own."""

import itertools
import sys
from collections import Counter

import numpy as np
import pytest
from foldkit import CASES, random_values, reduced
from transferkit import Party, call_of, expected, roots

from ringd.collective import kinds
from ringd.collective.arrange import arrange
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.kinds import KINDS, Inputs
from ringd.collective.layout import Layout
from ringd.collective.reduction import Reduction, dtype_from_name
from ringd.collective.transfer import ScratchPool

PLACES = {
    "one-alone": (0,),
    "three-on-one": (0, 0, 0),
    "two-turned": (1, 0),
    "three-turned": (2, 0, 1),
    "two-by-two": (0, 0, 1, 1),
    "two-by-two-crossed": (1, 0, 1, 0),
    "one-two-three": (0, 1, 1, 2, 2, 2),
    "three-one-two-crossed": (5, 2, 8, 2, 5, 2),
}
"""By rank, the member of the ring that it is on."""

LAYOUTS = pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
CARRIED = [
    name
    for name, kind in KINDS.items()
    if kind.data and not kind.pair and name != "all_gather_bytes"
]
MOVING = [name for name in CARRIED if not KINDS[name].reduces]
REDUCING = [name for name in CARRIED if KINDS[name].reduces]
COUNTS = (0, 1, 5, 64, 131)
"""None, few, some on the edges of chunks, and more than fit into a window of them."""


def order_of(places):
    """Return all ranks, machine by machine."""
    return Layout.of(places, places[0]).order


def run(calls, inputs, places, seed, **settings):
    """Carry the calls out; return the ring, of which everything has come to its end."""
    ring = Party(calls, inputs, places=places, **settings).run(seed)
    assert [t.finished for t in ring.transfers] == [True] * len(set(places))
    assert not any(t._buffers or t._outgoing for t in ring.transfers)
    assert [x.tobytes() for x in ring.inputs] == [x.tobytes() for x in inputs]
    return ring


def small(calls, inputs, places, reduction=None):
    """Return what each rank is given where the call is small."""
    size, order = len(calls), order_of(places)
    results = []
    for rank, call in enumerate(calls):
        target = np.empty(kinds.target_count(call, rank, size), inputs[0].dtype)
        KINDS[call.kind].compute(Inputs(inputs, calls, rank, reduction, order), target)
        results.append(target.tobytes())
    return results


def promised(name, operation, inputs, places, root):
    """Return the reduction in the order that the plan of a large call promises."""
    machines = Layout.of(places, places[0]).machines
    number = len(machines)

    def from_machine(first, columns):
        order = itertools.chain.from_iterable(machines[(first + i) % number] for i in range(number))
        return reduced(operation, [inputs[rank][columns] for rank in order])

    count = len(inputs[0])
    if name == "reduce":
        at = next(i for i, ranks in enumerate(machines) if root in ranks)
        return from_machine(at + 1, slice(None))
    if name == "reduce_scatter":
        block = count // len(inputs)
        return np.concatenate(
            [
                from_machine(at + 1, slice(rank * block, (rank + 1) * block))
                for rank, at in sorted((r, i) for i, ranks in enumerate(machines) for r in ranks)
            ]
        )
    return np.concatenate(
        [
            from_machine(s, slice(count * s // number, count * (s + 1) // number))
            for s in range(number)
        ]
    )


@LAYOUTS
@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("dtype", ["int32", "bool", "float16", "bfloat16", "complex64"])
def test_what_is_moved_arrives_as_it_was(name, places, dtype):
    """Bit by bit, NaN and odd bytes of bool included, large or small, whatever the root."""
    size, kind = len(places), dtype_from_name(dtype)
    rng = np.random.default_rng(size)
    for seed, (count, root) in enumerate(itertools.product(COUNTS, roots(name, size))):
        call = call_of(name, count, size, root, dtype=dtype)
        kinds.check(call, size)
        inputs = [
            rng.integers(
                0, 256, kinds.source_count(call, rank, size) * kind.itemsize, np.uint8
            ).view(kind)
            for rank in range(size)
        ]
        wanted = [x.tobytes() for x in expected(name, inputs, root, None)]
        ring = run([call] * size, inputs, places, seed)
        assert [target.tobytes() for target in ring.targets] == wanted
        assert small([call] * size, inputs, places) == wanted


@LAYOUTS
@pytest.mark.parametrize("name", REDUCING)
@pytest.mark.parametrize("by_rank", [False, True])
def test_what_is_reduced_has_the_promised_bits(name, places, by_rank):
    """Every op and dtype, in the order that is promised: on all ranks the same bits."""
    size = len(places)
    order = order_of(places)
    for seed, (operation, dtype) in enumerate(CASES):
        rng = np.random.default_rng(seed)
        count = COUNTS[1:][seed % 4]
        root = roots(name, size)[seed % len(roots(name, size))]
        call = call_of(name, count, size, root, operation=operation, dtype=dtype)
        kinds.check(call, size)
        kind = dtype_from_name(dtype)
        inputs = [random_values(rng, kind, kinds.source_count(call, 0, size)) for _ in places]
        ring = run([call] * size, inputs, places, seed, by_rank=by_rank)
        if by_rank:
            total = reduced(operation, [inputs[rank] for rank in order])
        else:
            total = promised(name, operation, inputs, places, root)
        wanted = [x.tobytes() for x in expected(name, inputs, root, total)]
        assert [target.tobytes() for target in ring.targets] == wanted


@LAYOUTS
@pytest.mark.parametrize("name", REDUCING)
def test_by_rank_large_and_small_calls_have_the_same_bits(name, places):
    """Machine by machine, an element has its value wherever it stands, whatever its machine."""
    size = len(places)
    floats = ("float32", "float16", "bfloat16", "complex64")
    for seed, (operation, dtype) in enumerate(itertools.product(("sum", "mean", "prod"), floats)):
        rng = np.random.default_rng(seed)
        for root in roots(name, size):
            call = call_of(name, 37, size, root, operation=operation, dtype=dtype)
            kind = dtype_from_name(dtype)
            inputs = [random_values(rng, kind, kinds.source_count(call, 0, size)) for _ in places]
            ring = run([call] * size, inputs, places, seed, by_rank=True)
            wanted = small([call] * size, inputs, places, ring.reduction)
            assert [target.tobytes() for target in ring.targets] == wanted


@LAYOUTS
def test_no_elements_are_reduced_in_no_time(places):
    """A large call of an empty tensor ends like any other."""
    size = len(places)
    for name, by_rank in itertools.product(REDUCING, (False, True)):
        call = call_of(name, 0, size, roots(name, size)[0], operation="sum", dtype="float16")
        run([call] * size, [np.empty(0, np.float16)] * size, places, 0, by_rank=by_rank)


@LAYOUTS
def test_a_nan_of_a_machine_of_its_own_is_the_one_nan(places):
    """Where a result is made on one machine, and where it passes several."""
    size = len(places)
    values = np.array([0x7FC0_0001, 0xFFC0_0000, 0x7F80_0001, 0x8000_0000], np.uint32)
    inputs = [values.view(np.float32)] * size
    for operation in ("sum", "min", "max", "prod", "mean"):
        call = Call("all_reduce", operation, "float32", (4,), "")
        ring = run([call] * size, inputs, places, 0)
        for target in ring.targets:
            assert target[:3].view(np.uint32).tolist() == [0x7FC0_0000] * 3


@LAYOUTS
def test_uneven_blocks_arrive_where_they_belong(places):
    """Of an all-gather and of an all-to-all, some of them empty."""
    size = len(places)
    rng = np.random.default_rng(size)
    for seed in range(24):
        matrix = rng.integers(0, [1, 3, 60][seed % 3] + 1, (size, size)) * rng.integers(
            0, 2, (size, size)
        )
        pairs = [
            Call(
                "all_to_all",
                "",
                "int32",
                (int(matrix[r].sum()), 2),
                "",
                NO_ROOT,
                (*matrix[r].tolist(), *matrix[:, r].tolist()),
            )
            for r in range(size)
        ]
        lengths = tuple(matrix[0].tolist())
        alls = [Call("all_gather", "", "int32", (n, 2), "", NO_ROOT, lengths) for n in lengths]
        for calls in (pairs, alls):
            inputs = [
                np.arange(r * 10_000, r * 10_000 + kinds.source_count(call, r, size), dtype="i4")
                for r, call in enumerate(calls)
            ]
            ring = run(calls, inputs, places, seed, limited=KINDS[calls[0].kind].passes)
            rows = [x.reshape(-1, 2) for x in inputs]
            for rank, target in enumerate(ring.targets):
                wanted = inputs
                if calls is pairs:
                    wanted = [
                        np.split(x, np.cumsum(matrix[i])[:-1])[rank] for i, x in enumerate(rows)
                    ]
                assert target.tolist() == np.concatenate(wanted).reshape(-1).tolist()
            assert small(calls, inputs, places) == [x.tobytes() for x in ring.targets]


@LAYOUTS
@pytest.mark.parametrize("name", CARRIED)
def test_a_result_that_nobody_needs_keeps_no_other_from_its_own(name, places):
    """A rank that works for others only, or all of a machine's."""
    size = len(places)
    operation = "sum" if KINDS[name].reduces else ""
    for root, unwanted in itertools.product(
        roots(name, size), ({0}, {size - 1}, {r for r in range(size) if places[r] == places[0]})
    ):
        call = call_of(name, 20, size, root, operation=operation, dtype="int32")
        inputs = [
            np.arange(kinds.source_count(call, r, size), dtype="i4") + 1000 * r for r in range(size)
        ]
        total = sum(inputs) if operation else None
        wanted = expected(name, inputs, root, total)
        ring = run([call] * size, inputs, places, root, unwanted=unwanted)
        for rank, target in enumerate(ring.targets):
            assert (target is None) == (rank in unwanted)
            if target is not None:
                assert target.tolist() == wanted[rank].tolist()


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_byte_crosses_a_link_once_whatever_the_number_of_ranks(name, dtype):
    """With four ranks on each of three machines, links carry what they carry with one."""
    kind = KINDS[name]
    operation = "sum" if kind.reduces else ""
    links = []
    for ranks in (1, 4):
        places = [machine for machine in range(3) for _ in range(ranks)]
        size = len(places)
        # The blocks that ranks have for others are so small that those of machines are alike.
        count = 240 // ranks ** (kind.divides + kind.joins)
        call = call_of(name, count, size, roots(name, size)[0], operation=operation, dtype=dtype)
        inputs = [np.ones(kinds.source_count(call, r, size), dtype) for r in range(size)]
        ring = run([call] * size, inputs, places, 0)
        links.append([sum(send.nbytes for send in t.plan.sends) for t in ring.transfers])
    one, four = links
    if operation and dtype == "float16":  # what a machine sends first is a sum already, in float32
        assert max(four) <= 2 * max(one)
    else:
        assert four == one


@pytest.mark.parametrize("name", CARRIED)
def test_one_machine_works_in_pieces_and_sends_nothing(name):
    """No piece is longer than a chunk, and each is done by a call of its own."""
    places, count = (3, 3, 3), 400
    kind = KINDS[name]
    operation = "sum" if kind.reduces else ""
    call = call_of(name, count, 3, roots(name, 3)[0], operation=operation, dtype="float16")
    inputs = [np.ones(kinds.source_count(call, r, 3), np.float16) for r in range(3)]
    ring = Party([call] * 3, inputs, places=places)
    (transfer,) = ring.transfers
    assert transfer.next_send() is None
    assert not transfer.finished
    pieces = [local.count for local in transfer.plan.local]
    assert max(pieces) * transfer.plan.task.accumulator_itemsize <= 64
    more = [transfer.work() for _ in pieces]
    assert more == [True] * (len(pieces) - 1) + [False]
    assert transfer.finished
    assert transfer.work() is False


@pytest.mark.parametrize(
    ("side", "count", "message"),
    [
        ("inputs", 3, r"inputs: an array has shape \(3,\), not \(4,\)"),
        ("results", 5, r"results: an array has shape \(5,\), not \(4,\)"),
    ],
)
def test_an_array_of_another_length_is_refused(side, count, message):
    """Before anything moves, whichever rank it is of."""
    call = Call("all_reduce", "sum", "int32", (4,), "")
    arrays = {"inputs": [np.zeros(4, np.int32)] * 2, "results": [np.zeros(4, np.int32)] * 2}
    arrays[side] = [np.zeros(4, np.int32), np.zeros(count, np.int32)]
    arrangement = arrange(
        [call] * 2,
        Layout(((0, 1),), 0),
        itemsize=4,
        accumulator_itemsize=4,
        chunk_bytes=64,
        by_rank=False,
    )
    reduction = Reduction("sum", np.int32, 2)
    with pytest.raises(ValueError, match=message):
        arrangement.begin(reduction, arrays["inputs"], arrays["results"], ScratchPool(64))


def test_one_rank_on_each_machine_costs_no_search():
    """A chunk of an all-reduce takes six calls: four of the transfer, and the arithmetic."""
    call = Call("all_reduce", "sum", "float32", (4 * 16 * 50,), "")
    ring = Party([call] * 4, [np.ones(4 * 16 * 50, np.float32)] * 4)
    calls = Counter()  # of functions

    def count(frame, event, _argument):
        if event == "call" and "/ringd/collective/" in frame.f_code.co_filename:
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        ring.march()
    finally:
        sys.setprofile(None)
    chunks = sum(len(t.plan.receives) for t in ring.transfers)
    reduced = chunks // 2
    assert calls["cut"] == 0
    for name in ("next_send", "sent", "receive_buffer", "received"):
        assert calls.pop(name) == chunks
    completed = calls.pop("complete")  # straight into the result
    assert 0 < completed < reduced
    for name in ("combine", "_place"):
        assert calls.pop(name) == reduced - completed
    for name in ("_reduce", "_came"):
        assert calls.pop(name) == reduced
