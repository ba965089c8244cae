"""With ``order = "rank"`` a sum does not depend on where a number stands, in three real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import ml_dtypes
import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.ringkit import connected, everywhere

BY_RANK = """
[ops]
timeout = "60s"
order = "rank"
"""
SMALL_PIECES = """
eager_limit = "0B"
chunk = "4KiB"
"""


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Cluster]]:
    """Give two rings by rank: with the usual limits, and with much smaller ones."""
    with ExitStack() as stack:
        found = [
            stack.enter_context(Cluster(tmp_path_factory.mktemp("ring"), 3, settings=settings))
            for settings in (BY_RANK, BY_RANK + SMALL_PIECES)
        ]
        for cluster in found:
            cluster.start()
        for cluster in found:
            cluster.wait_ready()
        yield found


@pytest.fixture
def both(
    clusters: list[Cluster], request: pytest.FixtureRequest
) -> Iterator[list[list[ringd.Ring]]]:
    """Give the rings of both, in a group of the test's own."""
    with ExitStack() as stack:
        group = request.node.name[-60:]
        yield [stack.enter_context(connected(cluster, group)) for cluster in clusters]


def reduced(both: list[list[ringd.Ring]], arrays: list[np.ndarray], op: str = "sum") -> set[bytes]:
    """Return the different results that all members of both rings get; there should be one."""
    return {
        result.tobytes()
        for rings in both
        for result in everywhere(rings, lambda ring: ring.all_reduce(arrays[ring.rank], op))
    }


def in_order(op: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Return ((x0 op x1) op x2), in the precision that ringd promises."""
    dtype = arrays[0].dtype
    x, y, z = (a.astype(np.float32) if dtype.itemsize == 2 else a for a in arrays)
    if op == "prod":
        return (x * y * z).astype(dtype)
    total = x + y + z
    return (total / np.array(3, total.dtype) if op == "mean" else total).astype(dtype)


@pytest.mark.parametrize("count", [1, 2, 8, 8192, 8193, 16_385, 300_000])
def test_what_cancels_cancels_everywhere(both: list[list[ringd.Ring]], count: int) -> None:
    """1e8 + 1 - 1e8 is 0 in float32, as the ranks add it, for each element of each tensor."""
    arrays = [np.full(count, value, np.float32) for value in (1e8, 1, -1e8)]
    assert reduced(both, arrays) == {np.zeros(count, np.float32).tobytes()}


@pytest.mark.parametrize("count", [3, 1000, 100_003])
@pytest.mark.parametrize(
    ("name", "op"),
    [
        *((name, op) for name in ("float32", "float64") for op in ("sum", "mean", "prod")),
        *((name, op) for name in ("float16", "bfloat16") for op in ("sum", "mean", "prod")),
        *(("complex64", op) for op in ("sum",)),
    ],
)
def test_every_float_is_reduced_by_rank(
    both: list[list[ringd.Ring]], name: str, op: str, count: int
) -> None:
    """The bits are those of ((x0 op x1) op x2), whatever the limits and chunks."""
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    random = np.random.default_rng(count)
    arrays = [random.normal(0, 10.0**k, count).astype(dtype) for k in (2, -2, 0)]
    assert reduced(both, arrays, op) == {in_order(op, arrays).tobytes()}


@pytest.mark.parametrize(
    ("dtype", "op"),
    [("int32", "sum"), ("uint8", "prod"), ("bool", "sum"), ("float32", "max"), ("float16", "min")],
)
def test_what_no_order_changes(both: list[list[ringd.Ring]], dtype: str, op: str) -> None:
    """Integers, minima and maxima give one result, too; they take the shorter way."""
    random = np.random.default_rng(5)
    arrays = [random.integers(0, 256, 100_003).astype(dtype) for _ in range(3)]
    ufunc = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}[op]
    expected = ufunc.reduce(arrays, axis=0, dtype=np.dtype(dtype))
    assert reduced(both, arrays, op) == {expected.tobytes()}


def test_tensors_one_by_one_or_as_one(both: list[list[ringd.Ring]]) -> None:
    """64 tensors of many sizes have the bits that they have in one long tensor."""
    random = np.random.default_rng(64)
    sizes = [int(10 ** random.uniform(0, 4.3)) for _ in range(64)]
    parts = [[random.normal(0, 10.0**k, n).astype(np.float32) for n in sizes] for k in (3, 0, -3)]

    def one_by_one(ring: ringd.Ring) -> bytes:
        works = [ring.all_reduce_async(x) for x in parts[ring.rank]]
        return b"".join(work.wait().tobytes() for work in works)

    together = reduced(both, [np.concatenate(xs) for xs in parts])
    assert len(together) == 1
    for rings in both:
        assert set(everywhere(rings, one_by_one)) == together


def test_a_restarted_daemon_changes_no_bit(
    clusters: list[Cluster], both: list[list[ringd.Ring]]
) -> None:
    """What runs again after a loss is added by rank again."""
    random = np.random.default_rng(7)
    arrays = [random.normal(0, 10.0**k, 500_000).astype(np.float32) for k in (3, 0, -3)]
    expected = in_order("sum", arrays).tobytes()

    def call(ring: ringd.Ring) -> set[bytes]:
        works = [ring.all_reduce_async(arrays[ring.rank]) for _ in range(20)]
        works[0].wait()
        if ring.rank == 0:
            clusters[0][1].restart()
        return {work.wait().tobytes() for work in works}

    assert everywhere(both[0], call) == [{expected}] * 3
