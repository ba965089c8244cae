"""Rings of transfers in memory, driven in any order, give the promised bits."""

import ml_dtypes
import numpy as np
import pytest
from foldkit import CASES, fold, random_values, reduced
from hypothesis import given, settings
from hypothesis import strategies as st
from transferkit import Sums

from ringd.collective.chain_plans import chain_all_reduce
from ringd.collective.plan import Combine, Place
from ringd.collective.reduction import dtype_from_name
from ringd.collective.ring_plans import ring_all_reduce
from ringd.collective.transfer import ScratchPool

WAYS = pytest.mark.parametrize("way", [ring_all_reduce, chain_all_reduce])


def promised_bits(operation, inputs, way=ring_all_reduce):
    """Return the result that the rules promise.

    In a ring each segment is folded from its own rank on, in a chain all is from rank 0 on.
    """
    size, count = len(inputs), len(inputs[0])
    result = []
    for segment in range(size):
        block = slice(count * segment // size, count * (segment + 1) // size)
        first = segment if way is ring_all_reduce else 0
        turned = [inputs[(first + i) % size][block] for i in range(size)]
        result.append(reduced(operation, turned))
    return np.concatenate(result).tobytes()


def exact(operation, inputs):
    """Return the result in higher precision, and a bound for the rounding error."""
    size, dtype = len(inputs), inputs[0].dtype
    if dtype.kind in "biu":
        return fold(operation, inputs), 0
    higher = np.clongdouble if dtype.kind == "c" else np.longdouble
    wide = [x.astype(np.float64 if dtype.kind != "c" else dtype).astype(higher) for x in inputs]
    total = fold(operation, wide)
    magnitude = fold("prod" if operation == "prod" else "sum", [np.abs(x) for x in wide])
    if operation == "mean":
        total, magnitude = total / size, magnitude / size
    own = float(ml_dtypes.finfo(dtype).eps)
    accumulated = 2**-23 if dtype.itemsize == 2 else own
    return total, np.abs(total) * own + magnitude * accumulated * 2 * size


@WAYS
@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize(("operation", "name"), CASES)
def test_every_op_dtype_and_size_gives_the_promised_bits(operation, name, size, way):
    """All ranks hold the same bits: the fold in the plan's order, near the exact value."""
    dtype = dtype_from_name(name)
    rng = np.random.default_rng(size)
    for count in (0, 1, size - 1, 4 * size + 3, 131):
        inputs = [random_values(rng, dtype, count) for _ in range(size)]
        ring = Sums(operation, inputs, chunk_bytes=64, way=way).run(seed=count)
        assert [t.finished for t in ring.transfers] == [True] * size
        promised = promised_bits(operation, inputs, way)
        assert [target.tobytes() for target in ring.targets] == [promised] * size
        assert [x.tobytes() for x in ring.inputs] == [x.tobytes() for x in inputs]
        value, bound = exact(operation, inputs)
        if dtype.kind in "biu":
            assert promised == value.astype(dtype).tobytes()
        else:
            got = ring.targets[0].astype(value.dtype)
            assert (np.abs(got - value) <= bound).all()


@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from(CASES),
    way=st.sampled_from([ring_all_reduce, chain_all_reduce]),
    size=st.integers(1, 8),
    count=st.integers(0, 300),
    chunk_bytes=st.integers(16, 700),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_order_of_events_never_shows(case, way, size, count, chunk_bytes, seed):  # noqa: PLR0917
    """Whatever happens first, chunk sizes and timing leave no trace in the result."""
    operation, name = case
    rng = np.random.default_rng(seed)
    inputs = [random_values(rng, dtype_from_name(name), count) for _ in range(size)]
    ring = Sums(operation, inputs, chunk_bytes, way=way).run(seed)
    again = Sums(operation, inputs, chunk_bytes, way=way).run(seed + 1)
    promised = promised_bits(operation, inputs, way)
    assert [t.finished for t in ring.transfers] == [True] * size
    assert [target.tobytes() for target in ring.targets] == [promised] * size
    assert [target.tobytes() for target in again.targets] == [promised] * size
    assert [x.tobytes() for x in ring.inputs] == [x.tobytes() for x in inputs]


@WAYS
@pytest.mark.parametrize("stalled", range(4))
def test_a_stalled_member_never_blocks_the_wire(stalled, way):
    """While one rank sends nothing, all others can still receive whatever is on its way."""
    rng = np.random.default_rng(0)
    inputs = [random_values(rng, np.dtype(np.float16), 999) for _ in range(4)]
    ring = Sums("sum", inputs, chunk_bytes=64, way=way)
    while moves := [m for m in ring.moves() if m != (ring.start, stalled)]:
        act, rank = moves[0]
        act(rank)
    assert not any(ring.wire)
    assert not all(t.finished for t in ring.transfers)
    ring.run(seed=0)
    assert all(t.finished for t in ring.transfers)


@WAYS
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_scratch_buffers_come_back(name, size, way):
    """After a run the pool holds every buffer that it gave, each of them once.

    A result takes one only if what it is made of came in one.
    """
    pool = ScratchPool(64, keep=10_000)
    taken = []
    take = pool.take
    rng = np.random.default_rng(0)
    inputs = [random_values(rng, dtype_from_name(name), 500) for _ in range(size)]

    class Counting:
        nbytes = 64

        def take(self, length):
            buffer = take(length)
            taken.append(id(buffer))
            return buffer

        def give(self, buffer):
            pool.give(buffer)

    ring = Sums("sum", inputs, 64, way=way, pool=Counting()).run(seed=1)
    assert all(t.finished for t in ring.transfers)
    received = [receive for t in ring.transfers for receive in t.plan.receives]
    into_target = {Combine.STORE: 0, Combine.ADD: 1, Combine.FINISH: 0}
    assert len(taken) == sum(
        1 if receive.place is Place.SCRATCH else into_target[receive.combine]
        for receive in received
    )
    assert not any(t._buffers for t in ring.transfers)
    free = [id(pool.take(1)) for _ in range(len(pool._free))]
    assert sorted(free) == sorted(set(taken))


@WAYS
def test_equal_dtypes_need_no_scratch(way):
    """Partial sums of float32 live in the target."""
    rng = np.random.default_rng(0)
    inputs = [random_values(rng, np.dtype(np.float32), 500) for _ in range(4)]
    ring = Sums("sum", inputs, 64, way=way, pool=ScratchPool(0)).run(seed=1)
    assert all(t.finished for t in ring.transfers)
    assert ring.pool._free == []
