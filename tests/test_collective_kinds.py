"""Every kind of call: large and small ones give what its name promises, in any order of events."""

import itertools

import numpy as np
import pytest
from transferkit import Party, expected, roots, tensors_of

from ringd.collective import kinds
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.kinds import KINDS, Inputs
from ringd.collective.plan import Combine, Place
from ringd.collective.reduction import Reduction, dtype_from_name
from ringd.collective.transfer import ScratchPool

SIZES = range(1, 7)
CARRIED = [
    name
    for name, kind in KINDS.items()
    if kind.data and not kind.pair and name != "all_gather_bytes"
]
MOVING = [name for name in CARRIED if not KINDS[name].reduces]
REDUCING = [name for name in CARRIED if KINDS[name].reduces]


def counts(name, size):
    """Return some numbers of elements, with none, few, and more than fit into a window."""
    return [n * size if KINDS[name].divides else n for n in (0, 1, 5, 64, 331)]


def call_of(name, count, size, root, *, operation="sum", dtype="int32"):
    """Return a call of this kind."""
    operation = operation if KINDS[name].reduces else ""
    shape = (count,) if not KINDS[name].divides else (size, count // size)
    return Call(name, operation, dtype, shape, "", root, tensors=tensors_of(name, count))


def row(shape, tensors, dtype="int8"):
    """Return a call of tensors that travel as a row of that *shape*."""
    return Call("all_reduce_coalesced", "sum", dtype, shape, "", tensors=tensors)


def values(call, rank, size):
    """Return what *rank* hands over: every element of every rank is another one."""
    count = kinds.source_count(call, rank, size)
    return np.arange(rank * 10_000, rank * 10_000 + count, dtype=dtype_from_name(call.dtype))


def run(call, inputs, seed, *, by_rank=False, chunk_bytes=64, pool=None):
    """Carry *call* out in a ring; return that."""
    calls = [call] * len(inputs)
    ring = Party(calls, inputs, chunk_bytes, by_rank=by_rank, pool=pool)
    ring.run(seed)
    assert [t.finished for t in ring.transfers] == [True] * len(inputs)
    assert not any(t._buffers for t in ring.transfers)
    assert [x.tobytes() for x in ring.inputs] == [x.tobytes() for x in inputs]
    return ring


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MOVING)
def test_what_is_moved_arrives_where_it_belongs(name, size):
    """Large or small, whatever the root, in any order of events."""
    for seed, (count, root) in enumerate(itertools.product(counts(name, size), roots(name, size))):
        call = call_of(name, count, size, root)
        kinds.check(call, size)
        inputs = [values(call, rank, size) for rank in range(size)]
        wanted = [x.tolist() for x in expected(name, inputs, root, None)]
        ring = run(call, inputs, seed)
        assert [target.tolist() for target in ring.targets] == wanted
        for rank in range(size):
            target = np.empty(kinds.target_count(call, rank, size), np.int32)
            KINDS[name].compute(Inputs(inputs, [call] * size, rank, None), target)
            assert target.tolist() == wanted[rank]


@pytest.mark.parametrize("size", SIZES)
def test_uneven_blocks_arrive_where_they_belong(size):
    """Of an all-gather and of an all-to-all, some of them empty, in any order of events."""
    rng = np.random.default_rng(size)
    for seed in range(30):
        matrix = rng.integers(0, [1, 3, 100][seed % 3] + 1, (size, size)) * rng.integers(0, 2)
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
            for call in calls:
                kinds.check(call, size)
            assert kinds.disagreement(calls) is None
            inputs = [values(call, rank, size) for rank, call in enumerate(calls)]
            ring = Party(calls, inputs).run(seed)
            assert all(t.finished for t in ring.transfers)
            for rank, target in enumerate(ring.targets):
                small = np.empty(kinds.target_count(calls[rank], rank, size), np.int32)
                KINDS[calls[0].kind].compute(Inputs(inputs, calls, rank, None), small)
                assert target.tolist() == small.tolist()
                if calls is alls:
                    assert small.tolist() == np.concatenate(inputs).tolist()
                else:
                    rows = [x.reshape(-1, 2) for x in inputs]
                    cut = [np.split(x, np.cumsum(matrix[i])[:-1])[rank] for i, x in enumerate(rows)]
                    assert small.reshape(-1, 2).tolist() == np.concatenate(cut).tolist()


@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["int32", "float32", "float16"])
@pytest.mark.parametrize("name", REDUCING)
def test_what_is_reduced_has_every_rank_in_it_once(name, dtype, size, by_rank):
    """Whole numbers, so that the order does not matter, in every dtype."""
    rng = np.random.default_rng(size)
    for seed, (count, root) in enumerate(itertools.product(counts(name, size), roots(name, size))):
        call = call_of(name, count, size, root, operation="sum", dtype=dtype)
        inputs = [rng.integers(0, 100, count).astype(dtype) for _ in range(size)]
        reduced = np.sum(inputs, axis=0).astype(dtype)
        wanted = [x.tolist() for x in expected(name, inputs, root, reduced)]
        ring = run(call, inputs, seed, by_rank=by_rank)
        assert [target.tolist() for target in ring.targets] == wanted


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
@pytest.mark.parametrize("operation", ["sum", "mean", "prod"])
@pytest.mark.parametrize("name", REDUCING)
def test_by_rank_large_and_small_calls_have_the_same_bits(name, operation, dtype, size):
    """In the order of the ranks, an element has its value wherever it stands."""
    kind, wanted = KINDS[name], dtype_from_name(dtype)
    rng = np.random.default_rng(size)
    reduction = Reduction(operation, wanted, size)
    for root in roots(name, size):
        call = call_of(name, 60, size, root, operation=operation, dtype=dtype)
        inputs = [rng.uniform(0.5, 1.5, 60).astype(wanted) for _ in range(size)]
        ring = run(call, inputs, seed=size, by_rank=True)
        for rank, target in enumerate(ring.targets):
            small = np.empty(kinds.target_count(call, rank, size), wanted)
            kind.compute(Inputs(inputs, [call] * size, rank, reduction), small)
            assert target.tobytes() == small.tobytes()


@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("name", CARRIED)
def test_a_chunk_is_received_as_it_is_sent(name, by_rank):
    """What a rank sends as chunk i is what its right neighbour receives as chunk i."""
    for size in SIZES:
        for root in roots(name, size):
            call = call_of(
                name,
                60 * size,
                size,
                root,
                dtype="float16",
            )
            inputs = [values(call, rank, size) for rank in range(size)]
            ring = run(call, inputs, 0, by_rank=by_rank)
            plans = [t.plan for t in ring.transfers]
            for left, right in zip(plans, plans[1:] + plans[:1], strict=True):
                sent = [(s.stop - s.start, s.nbytes) for s in left.sends]
                assert sent == [(r.stop - r.start, r.nbytes) for r in right.receives]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        # Of a tensor of n blocks, in blocks: the most that a link has to carry.
        ("all_reduce", lambda n: 2 * (n - 1)),
        ("all_reduce_coalesced", lambda n: 2 * (n - 1)),
        ("reduce", lambda n: n),
        ("reduce_scatter", lambda n: n - 1),
        ("broadcast", lambda n: n),
        ("all_gather", lambda n: n * (n - 1)),
        ("gather", lambda n: n * (n - 1)),
        ("scatter", lambda n: n - 1),
        ("all_to_all", lambda n: n * (n - 1) // 2),
    ],
)
def test_bytes_over_a_link(name, share):
    """No link carries more than the way there needs."""
    for size in range(2, 7):
        for root in roots(name, size):
            call = call_of(name, 24 * size, size, root)
            inputs = [values(call, rank, size) for rank in range(size)]
            ring = run(call, inputs, 0)
            carried = [sum(send.nbytes for send in t.plan.sends) for t in ring.transfers]
            assert max(carried) == 24 * 4 * share(size)


@pytest.mark.parametrize("by_rank", [False, True])
@pytest.mark.parametrize("name", CARRIED)
def test_what_only_passes_is_held_within_bounds(name, by_rank):
    """Where neighbours keep pace, what is for others takes the same memory, however much it is."""
    size = 5
    for root in roots(name, size):
        peaks = []
        for count in (10_000, 20_000):
            call = call_of(name, count, size, root)
            inputs = [values(call, rank, size) for rank in range(size)]
            pool = ScratchPool(256, keep=10_000)
            calls = [call] * size
            ring = Party(calls, inputs, 256, by_rank=by_rank, pool=pool).march()
            assert all(t.finished for t in ring.transfers)
            peaks.append(len(pool._free))
        assert peaks[0] == peaks[1] <= 8 * size * size


def test_the_table_says_which_plans_need_no_memory_of_the_daemon():
    """What has its place in the result goes there at once."""
    for name in ("all_reduce", "all_reduce_coalesced", "broadcast", "all_gather"):
        kind = KINDS[name]
        call = call_of(name, 64, 4, 0 if kind.rooted else NO_ROOT)
        ring = run(call, [values(call, rank, 4) for rank in range(4)], 0, pool=ScratchPool(0))
        for transfer in ring.transfers:
            for receive in transfer.plan.receives:
                assert receive.place is Place.TARGET
                assert receive.combine is Combine.STORE or kind.reduces


@pytest.mark.parametrize(
    ("call", "size", "message"),
    [
        (Call("all_scatter", "", "int8", (2,), ""), 2, "unknown kind of call 'all_scatter'"),
        (Call("barrier", "sum", "", (), ""), 2, "a barrier has no data"),
        (Call("barrier", "", "", (), "", 0), 2, "barrier has no root"),
        (Call("all_reduce", "sum", "int8", (2,), "", 1), 2, "all_reduce has no root"),
        (Call("all_reduce", "", "int8", (2,), ""), 2, "unknown op ''"),
        (Call("all_gather", "sum", "int8", (2,), ""), 2, "all_gather has no op"),
        (Call("broadcast", "", "int8", (2,), ""), 2, "root -1 is not one of the 2 ranks"),
        (Call("broadcast", "", "int8", (2,), "", 2), 2, "root 2 is not one of the 2 ranks"),
        (Call("scatter", "", "int8", (3, 2), "", 0), 2, "axis 0 of shape (3, 2) cannot be divided"),
        (Call("all_to_all", "", "int8", (), ""), 2, "has at least one axis"),
        (Call("all_gather", "", "int8", (2**62,), ""), 2, "the tensor is too large"),
        (Call("gather", "", "int8", (-1,), "", 0), 2, "none negative"),
        (Call("gather", "", "object", (1,), "", 0), 2, "unknown dtype 'object'"),
        (
            Call("all_reduce", "sum", "int8", (2,), "", tensors="[[2]]"),
            2,
            "all_reduce is of one tensor",
        ),
        (row((3,), "[[2],[2]]"), 2, "have 4 elements together, but the row of them has shape (3,)"),
        (row((4, 1), "[[2],[2]]"), 2, "the row of them has shape (4, 1)"),
        (row((1,), "[]"), 2, "have 0 elements together"),
        (row((1,), ""), 2, "no shapes of tensors"),
        (row((2,), "[2"), 2, "no shapes of tensors"),
        (row((2**62,), "[[4611686018427387904]]", "int16"), 2, "the tensor is too large"),
    ],
)
def test_a_call_that_cannot_be_is_refused(call, size, message):
    """Before it reaches any arithmetic, with the reason."""
    with pytest.raises((TypeError, ValueError)) as caught:
        kinds.check(call, size)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "places", [(0, 1), (1, 0), (0, 0)], ids=["rightwards", "leftwards", "here"]
)
@pytest.mark.parametrize("count", [0, 1, 700])
def test_a_message_arrives_as_it_was_sent(places, count):
    """Between two machines, and on one: the sender is rank 0, wherever it is, and is given none."""
    call = Call("message", "", "int32", (count,), "")
    sent = np.arange(count, dtype=np.int32)
    arrived = np.full(count, -1, np.int32)
    nothing = np.empty(0, np.int32)
    KINDS["message"].compute(Inputs([sent, nothing], [call] * 2, 1, None), arrived)
    assert arrived.tolist() == sent.tolist()
    ring = Party([call] * 2, [sent, nothing], places=places).run(count)
    assert ring.targets[1].tolist() == sent.tolist()


def test_a_message_is_a_call_of_two():
    """In a group of another size it is refused."""
    with pytest.raises(ValueError, match="a call of two ranks, not of 3"):
        kinds.check(Call("message", "", "int32", (3,), ""), 3)
