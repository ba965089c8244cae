"""Many tensors in one call, over three real daemons."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.ringkit import begin, connected, everywhere, op_counts, outcomes, tensor, total

SHAPES = {
    "small": [(3,), (), (2, 4), (0,), (5, 1, 2), (2, 0, 3)],
    "large": [(300,), (), (20, 40), (0, 7), *[(1000,)] * 50, (3, 5, 7)],
    "long": [(3,)] * 16_384,
    "one": [(4, 4)],
    "nothing in them": [(0,), (3, 0)],
    "none": [],
}


def some(rank: int, shapes: Sequence[tuple[int, ...]], dtype: Any = np.float32) -> list[np.ndarray]:
    """Return what *rank* hands over: small whole numbers, so that sums are exact."""
    random = np.random.default_rng(rank)
    return [np.asarray(random.integers(0, 20, shape), dtype) for shape in shapes]


def sums(size: int, shapes: Sequence[tuple[int, ...]], dtype: Any = np.float32) -> list[np.ndarray]:
    """Return the sum of :func:`some` over all ranks."""
    parts = zip(*[some(rank, shapes, dtype) for rank in range(size)], strict=True)
    return [np.add.reduce(arrays).astype(dtype) for arrays in parts]


def check(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Values, shapes and dtypes are as wanted, and arrays are plain ones."""
    assert type(found) is list
    assert [type(array) for array in found] == [np.ndarray] * len(wanted)
    assert [array.shape for array in found] == [array.shape for array in wanted]
    assert [array.dtype for array in found] == [array.dtype for array in wanted]
    assert [array.tobytes() for array in found] == [array.tobytes() for array in wanted]


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_each_is_reduced_as_if_it_were_alone(
    calm: list[ringd.Ring], shapes: list[tuple[int, ...]]
) -> None:
    """Whatever their shapes; inputs stay as they are."""

    def call(ring: ringd.Ring) -> None:
        xs = some(ring.rank, shapes)
        check(ring.all_reduce_coalesced(xs), sums(3, shapes))
        check(xs, some(ring.rank, shapes))
        check(ring.all_reduce_coalesced_async(xs, "sum").wait(), sums(3, shapes))

    everywhere(calm, call)


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "bfloat16", "complex64", ">f4"])
@pytest.mark.parametrize("count", [10, 3000])
def test_dtypes(calm: list[ringd.Ring], dtype: str, count: int) -> None:
    """All that all_reduce takes; the results have this machine's byte order."""
    wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    shapes = [(count,), (2, count), ()]

    def call(ring: ringd.Ring) -> None:
        given = [np.asarray(x != 0 if dtype == "bool" else x, wanted) for x in some(1, shapes)]
        alone = [ring.all_reduce(x) for x in given]
        check(ring.all_reduce_coalesced(given), alone)
        outs = [np.empty_like(x) for x in given]
        check(ring.all_reduce_coalesced(given, out=outs), outs)
        assert [out.tolist() for out in outs] == [x.tolist() for x in alone]

    everywhere(calm, call)


@pytest.mark.parametrize("op", ["sum", "mean", "prod", "min", "max"])
def test_ops_give_what_single_calls_give(calm: list[ringd.Ring], op: str) -> None:
    """Of floats whose sums are rounded, in one trip: to the last bit."""

    def call(ring: ringd.Ring) -> None:
        random = np.random.default_rng(ring.rank)
        xs = [random.uniform(0.5, 2, n).astype(np.float32) for n in (1, 7, 300, 900)]
        check(ring.all_reduce_coalesced(xs, op), [ring.all_reduce(x, op) for x in xs])

    everywhere(calm, call)


@pytest.mark.parametrize("count", [10, 30_000])
def test_any_layout_and_its_own_memory(calm: list[ringd.Ring], count: int) -> None:
    """Strided and transposed inputs and outs; an input may take its own result."""

    def call(ring: ringd.Ring) -> None:
        flat = np.repeat(tensor(ring.rank, count), 2)[::2]
        table = np.asfortranarray(tensor(ring.rank, count, 1).reshape(-1, 5))
        outs = [np.zeros(2 * count, np.float32)[::2], np.zeros((5, count // 5), np.float32).T]
        wanted = [total(3, count), total(3, count, 1).reshape(-1, 5)]
        found = ring.all_reduce_coalesced([flat, table], out=outs)
        assert all(array is out for array, out in zip(found, outs, strict=True))
        check(outs, wanted)
        check(ring.all_reduce_coalesced([flat, table], out=[flat, table]), wanted)
        check([flat, table], wanted)

    everywhere(calm, call)


def test_what_numpy_makes_arrays_of(calm: list[ringd.Ring]) -> None:
    """Lists, numbers, and those of other types, of several dtypes: each is its own array."""

    def call(ring: ringd.Ring) -> None:
        mixed = ([1, 2], 0.5, np.float32(3), [[True], [False]], 7)
        wanted = [ring.all_reduce(x) for x in mixed]
        check(ring.all_reduce_coalesced(mixed), wanted)

    everywhere(calm, call)


def test_memory_of_the_ring_is_copied(calm: list[ringd.Ring]) -> None:
    """It may be written to at once, as any other input."""

    def call(ring: ringd.Ring) -> None:
        xs = [ring.empty(50_000), ring.empty(50_000)]
        for x in xs:
            x[:] = tensor(ring.rank, 50_000)
        work = ring.all_reduce_coalesced_async(xs)
        for x in xs:
            x[:] = np.nan
        check(work.wait(), [total(3, 50_000)] * 2)

    everywhere(calm, call)


def mixed(rank: int, count: int) -> list[np.ndarray]:
    """Return tensors of three dtypes, out of order."""
    dtypes = ["f4", "i8", "f4", "f2", "i8"]
    return [np.full(count + i, rank + i, dtype) for i, dtype in enumerate(dtypes)]


@pytest.mark.parametrize("count", [10, 30_000])
def test_a_call_for_each_dtype(
    calm: list[ringd.Ring],
    calm_cluster: Cluster,
    request: pytest.FixtureRequest,
    count: int,
) -> None:
    """Results come in the order of the tensors; the handle is one."""

    def call(ring: ringd.Ring) -> None:
        xs = mixed(ring.rank, count)
        wanted = [np.full(count + i, 3 + 3 * i, x.dtype) for i, x in enumerate(xs)]
        work = ring.all_reduce_coalesced_async(xs, name="several")
        assert repr(work).count("all_reduce_coalesced") == 3
        check(work.wait(), wanted)
        assert work.wait() is work.wait()
        assert work.done()
        assert work.source is None
        check(ring.all_reduce_coalesced(xs, out=xs), wanted)
        check(xs, wanted)

    everywhere(calm, call)
    assert set(op_counts(calm_cluster[0], request.node.name[-60:]).values()) == {6}


def test_handles_of_several_dtypes(calm: list[ringd.Ring]) -> None:
    """They wait, call back, are futures and are awaited as those of one."""
    first = calm[0].all_reduce_coalesced_async(mixed(0, 10))
    told: list[object] = []
    first.add_done_callback(told.append)
    future = first.future()
    assert not first.done()
    with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
        first.wait(timeout=0.01)

    def call(ring: ringd.Ring) -> list[np.ndarray]:
        async def wait() -> list[np.ndarray]:
            return await ring.all_reduce_coalesced_async(mixed(ring.rank, 10))

        return asyncio.run(wait())

    others = begin(calm[1:], call)
    wanted = [np.full(10 + i, 3 + 3 * i, x.dtype) for i, x in enumerate(mixed(0, 10))]
    check(future.result(60), wanted)
    assert told == [first]
    first.add_done_callback(told.append)
    assert told == [first, first]
    for other in others:
        check(other.result(), wanted)


def test_one_error_for_all(calm: list[ringd.Ring]) -> None:
    """If one of several dtypes cannot be, none of the results is written, on any member."""

    def call(ring: ringd.Ring) -> None:
        xs = [np.ones(5), np.ones(4 + (ring.rank == 1), "i4"), np.ones(5, "f2")]
        work = ring.all_reduce_coalesced_async(xs, out=xs)
        with pytest.raises(ringd.Mismatch, match="int32"):
            work.wait()
        assert work.done()
        with pytest.raises(ringd.Mismatch, match="int32"):
            work.future().result(60)
        check(xs, [np.ones_like(x) for x in xs])

    everywhere(calm, call)


DIFFERENT = {
    "shape": (
        lambda rank: [np.ones((3, 4)), np.ones((2, 3) if rank == 2 else (3, 2)), np.ones(5)],
        r"as tensor 1 is \[3x2\] on rank 0 and \[2x3\] on rank 2: n0, n1: all_reduce_coalesced sum",
    ),
    "order": (
        lambda rank: [np.ones(1 + rank % 2), np.ones(2 - rank % 2)],
        r"tensor 0 is \[1\] on rank 0 and \[2\] on rank 1: n0, n2: .* tensors \[1\], \[2\]; n1: ",
    ),
    "number": (
        lambda rank: [np.ones(3)] * (1000 - (rank == 1)),
        r"tensors: rank 0 has 1000 and rank 1 has 999: n0, n2: .*\[3000\] of 1000 tensors; n1: ",
    ),
    "none": (
        lambda rank: [np.ones(3)] if rank else [],
        r"tensors: rank 0 has 0 and rank 1 has 1: .*float64\[0\] of no tensors;.* of tensors \[3\]",
    ),
    "dtype": (
        lambda rank: [np.ones(3, "f8" if rank else "f4")],
        r"sent different calls: n0: .*float32\[3\] of tensors \[3\]; n1, n2: .*float64\[3\]",
    ),
}


@pytest.mark.parametrize(("given", "text"), DIFFERENT.values(), ids=DIFFERENT)
def test_mismatch_names_the_tensor(calm: list[ringd.Ring], given: Any, text: str) -> None:
    """In the same words everywhere, that do not grow with the number of tensors."""
    found = outcomes(calm, lambda ring: ring.all_reduce_coalesced(given(ring.rank)))
    assert [type(error) for error in found] == [ringd.Mismatch] * 3
    assert len({str(error) for error in found}) == 1
    with pytest.raises(ringd.Mismatch, match=text):
        raise found[0]
    assert len(str(found[0])) < 600
    assert everywhere(calm, lambda ring: ring.all_reduce(np.ones(2)).tolist()) == [[3.0, 3.0]] * 3


def test_a_call_of_one_tensor_is_another(calm: list[ringd.Ring]) -> None:
    """Members agree on how it was made, too."""

    def call(ring: ringd.Ring) -> object:
        x = np.ones(4)
        return ring.all_reduce(x) if ring.rank else ring.all_reduce_coalesced([x])

    assert [type(error) for error in outcomes(calm, call)] == [ringd.Mismatch] * 3


ONE = np.ones(3)
LOCKED = np.ones(3)
LOCKED.setflags(write=False)
WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "array": (np.ones((2, 3)), {}, TypeError, r"a list of arrays, not one.*write \[x\]"),
    "dict": ({"a": ONE}, {}, TypeError, r"not a dict; write list\(x\), of a dict"),
    "set": ({1.0}, {}, TypeError, "not a set"),
    "text": ("ab", {}, TypeError, "not a str"),
    "number": (3, {}, TypeError, "not a int"),
    "None in it": ([ONE, None], {}, TypeError, r"xs\[1\].*x is None"),
    "mask in it": ([ONE, np.ma.array([1.0])], {}, TypeError, r"xs\[1\].*mask"),
    "text in it": ([ONE, "a"], {}, TypeError, r"xs\[1\].*dtype"),
    "objects": ([ONE, np.array([object()])], {}, TypeError, r"xs\[1\].*object"),
    "fields": ([np.zeros(2, "i4,i4")], {}, TypeError, r"xs\[0\].*named fields"),
    "op": ([ONE], {"op": "avg"}, ValueError, "avg"),
    "op of one": ([ONE, np.ones(2, int)], {"op": "mean"}, TypeError, r"xs\[1\].*'mean'.*int64"),
    "wire of one": ([np.ones(2, "f4"), ONE], {"wire": "int8"}, TypeError, r"xs\[1\].*float64"),
    "too many": ([np.ones(1)] * 16_385, {}, ValueError, "up to 16384 tensors, not 16385"),
    "too long": (
        [np.ones((1,) * 64)] * 3000,
        {},
        ValueError,
        "up to 131072 characters, not 390001",
    ),
    "outs": ([ONE, ONE], {"out": [ONE]}, ValueError, "out has 1 arrays, and xs 2"),
    "one out": ([ONE], {"out": ONE}, TypeError, "out is a list of arrays"),
    "shape of out": ([ONE, ONE], {"out": [ONE, np.ones(4)]}, ValueError, r"out\[1\].*shape"),
    "dtype of out": ([ONE], {"out": [np.ones(3, "f4")]}, TypeError, r"out\[0\].*float32"),
    "read-only out": ([ONE], {"out": [LOCKED]}, ValueError, r"out\[0\].*read-only"),
    "no out": ([ONE], {"out": [None]}, TypeError, r"out\[0\].*NoneType"),
    "timeout": ([ONE], {"timeout": 0}, ValueError, "positive"),
    "name": ([ONE], {"name": "x" * 300}, ValueError, "256 characters"),
}


@pytest.mark.parametrize(("xs", "options", "error", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_reach_nobody(
    calm: list[ringd.Ring], xs: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    """What cannot be reduced is refused here, with the place of it; no call was made."""
    with pytest.raises(error, match=text):
        calm[1].all_reduce_coalesced(xs, **options)
    assert everywhere(calm, lambda ring: ring.all_reduce(np.ones(1)).tolist()) == [[3.0]] * 3


def test_nothing_to_reduce_is_a_call_too(calm: list[ringd.Ring]) -> None:
    """Whatever the op; so members agree on that there is nothing."""
    ops = ["sum", "mean", "prod", "min", "max", "band", "bor", "bxor"]
    for op in ops:
        found = everywhere(calm, lambda ring, op=op: ring.all_reduce_coalesced([], op))
        assert found == [[]] * 3
    with pytest.raises(ringd.DeadlineExceeded, match="not submitted by"):
        calm[0].all_reduce_coalesced([], timeout=0.1)


def test_wire(calm: list[ringd.Ring]) -> None:
    """Of whole numbers that the format carries as they are."""

    def call(ring: ringd.Ring) -> None:
        xs = [np.full(n, 2 + ring.rank, np.float32) for n in (40_000, 3, 30_000)]
        for wire in ("bfloat16", "int8"):
            wanted = [np.full(x.shape, 9, np.float32) for x in xs]
            check(ring.all_reduce_coalesced(xs, wire=wire), wanted)

    everywhere(calm, call)


def test_a_deadline_ends_all(calm: list[ringd.Ring]) -> None:
    """With the name of who did not make the call; nothing is written."""
    xs = mixed(0, 10)
    with pytest.raises(ringd.DeadlineExceeded, match=r"0\.2 s passed.*not submitted by: n1, n2"):
        calm[0].all_reduce_coalesced(xs, out=xs, timeout=0.2)
    check(xs, mixed(0, 10))


def test_results_stay_as_long_as_one_is_held(calm_cluster: Cluster) -> None:
    """Their memory is used again once all of them are gone."""
    shapes = [(1000,)] * 100
    with connected(calm_cluster, "held") as rings:

        def call(ring: ringd.Ring) -> None:
            kept = [ring.all_reduce_coalesced(some(ring.rank, shapes))[i] for i in range(5)]
            for _ in range(5):
                ring.all_reduce_coalesced([np.full(1000, np.nan, np.float32)] * 100)
            check(kept, sums(3, shapes)[:5])

        everywhere(rings, call)
