"""How arrays go in and come out of three real daemons: layouts, copies, and who owns memory."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster
from tests.ringkit import begin, connected, everywhere, outcomes, tensor, total

INLINE, BULK, SEGMENT = 100, 12_000, 100_000
"""Elements of float32 that take one trip, as short ones and as long ones, and that go in chunks."""
LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "unaligned": lambda x: (
        np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    ),
}


def address(array: np.ndarray) -> int:
    """Return where the first element stands."""
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("rows", [10, 1200, 10_000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(calm: list[ringd.Ring], layout: str, rows: int) -> None:
    """Any layout is summed as its values say, stays as it was, and may differ by rank."""

    def call(ring: ringd.Ring) -> np.ndarray:
        x = np.arange(rows * 10, dtype=np.float32).reshape(rows, 10) % 997
        if ring.rank == 1:  # the others hand over plain arrays with the same values
            x = LAYOUTS[layout](x)
        elif layout == "broadcast":
            x = np.ascontiguousarray(LAYOUTS[layout](x))
        x.flags.writeable = False
        before = x.copy()
        result = ring.all_reduce(x)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(result, before.astype(np.float32) * 3)
        return result

    for result in everywhere(calm, call):
        assert result.dtype.isnative
        assert result.flags.writeable


def test_not_arrays(calm: list[ringd.Ring]) -> None:
    """Numbers and lists are taken as numpy takes them."""
    assert everywhere(calm, lambda ring: ring.all_reduce(2).item()) == [6, 6, 6]
    assert everywhere(calm, lambda ring: ring.all_reduce([1.5, 2]).tolist()) == [[4.5, 6.0]] * 3
    assert everywhere(calm, lambda ring: ring.all_reduce(True).item()) == [True] * 3


@pytest.mark.parametrize("count", [INLINE, BULK, SEGMENT])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_in_place(calm: list[ringd.Ring], order: str, count: int) -> None:
    """``out=x`` replaces x by the sum, whatever its layout, and returns it."""

    def call(ring: ringd.Ring) -> None:
        x = np.array(tensor(ring.rank, 2 * count).reshape(2, count), order="C")
        x = x[:, ::2] if order == "strided" else np.array(x, order=order)
        want = total(3, 2 * count).reshape(2, count)
        assert ring.all_reduce(x, out=x) is x
        np.testing.assert_array_equal(x, want[:, ::2] if order == "strided" else want)

    everywhere(calm, call)


@pytest.mark.parametrize("count", [INLINE, BULK, SEGMENT])
def test_input_may_be_reused_at_once(calm: list[ringd.Ring], count: int) -> None:
    """What is written to an ordinary array after the call was made does not count."""

    def call(ring: ringd.Ring) -> np.ndarray:
        x = tensor(ring.rank, count)
        work = ring.all_reduce_async(x)
        x[:] = np.nan
        return work.wait()

    for result in everywhere(calm, call):
        np.testing.assert_array_equal(result, total(3, count))


@pytest.mark.parametrize("count", [INLINE, BULK, SEGMENT])
def test_out_is_untouched_until_the_end_and_by_errors(calm: list[ringd.Ring], count: int) -> None:
    """An array for the result is not written to by a call that fails or is not over."""

    def call(ring: ringd.Ring) -> None:
        out = np.full(count, -1, np.float32)
        work = ring.all_reduce_async(tensor(ring.rank, count), out=out, name=f"of {ring.rank}")
        with pytest.raises(ringd.Mismatch):
            work.wait()
        np.testing.assert_array_equal(out, np.full(count, -1))

    everywhere(calm, call)


@pytest.mark.parametrize("count", [INLINE, BULK, SEGMENT])
def test_results_are_never_written_again(calm: list[ringd.Ring], count: int) -> None:
    """A kept result, and a view of one whose array is gone, outlive the calls that follow."""

    def call(ring: ringd.Ring) -> None:
        kept, views = [], []
        for seed in range(8):
            result = ring.all_reduce(tensor(ring.rank, count, seed))
            kept.append(result)
            views.append(ring.all_reduce(tensor(ring.rank, count, 100 + seed))[1:])
        gc.collect()
        for _ in range(8):
            ring.all_reduce(np.zeros(count, np.float32))
        for seed in range(8):
            np.testing.assert_array_equal(kept[seed], total(3, count, seed))
            np.testing.assert_array_equal(views[seed], total(3, count, 100 + seed)[1:])

    everywhere(calm, call)


def test_results_belong_to_the_program(calm: list[ringd.Ring]) -> None:
    """Writing to a result changes nothing for the others, nor for the calls that follow."""

    def call(ring: ringd.Ring) -> None:
        for seed in range(6):
            result = ring.all_reduce(tensor(ring.rank, SEGMENT, seed))
            np.testing.assert_array_equal(result, total(3, SEGMENT, seed))
            result *= ring.rank - 1

    everywhere(calm, call)


def test_empty_is_handed_over_without_a_copy(calm: list[ringd.Ring]) -> None:
    """Calls with arrays of ``empty``, and their contiguous views, take memory for results alone."""

    def call(ring: ringd.Ring) -> int:
        buffer = ring.empty((4, SEGMENT), np.float32)
        for row in range(4):
            buffer[row] = tensor(ring.rank, SEGMENT, row)
        pool = ring._connection.pool
        before = pool.size
        result = ring.all_reduce(buffer)
        row = ring.all_reduce(buffer[2])
        np.testing.assert_array_equal(result[2], row)
        np.testing.assert_array_equal(row, total(3, SEGMENT, 2))
        # A copy would have needed twice as much.
        return (pool.size - before) < 1.9 * (buffer.nbytes + row.nbytes)

    assert everywhere(calm, call) == [True] * 3


def test_empty_in_place_and_over_again(calm: list[ringd.Ring]) -> None:
    """An array of ``empty`` can be input and output, again and again, and keeps its address."""

    def call(ring: ringd.Ring) -> np.ndarray:
        buffer = ring.empty(SEGMENT, np.float32)
        place = address(buffer)
        buffer[:] = 1
        for _ in range(8):
            ring.all_reduce(buffer, out=buffer)
        assert address(buffer) == place
        return buffer

    for result in everywhere(calm, call):
        np.testing.assert_array_equal(result, np.full(SEGMENT, 3.0**8, np.float32))


def test_empty_may_be_changed_after_wait(calm: list[ringd.Ring]) -> None:
    """Once a call has returned, changing its ``empty`` input does not reach any other rank."""

    def call(ring: ringd.Ring) -> None:
        buffer = ring.empty(SEGMENT, np.float32)
        for seed in range(10):
            buffer[:] = tensor(ring.rank, SEGMENT, seed)
            result = ring.all_reduce(buffer)
            buffer[:] = np.nan
            np.testing.assert_array_equal(result, total(3, SEGMENT, seed))

    everywhere(calm, call)


def test_result_as_input(calm: list[ringd.Ring]) -> None:
    """A result can go in again, as it is, and stays what it was."""

    def call(ring: ringd.Ring) -> None:
        first = ring.all_reduce(tensor(ring.rank, SEGMENT))
        second = ring.all_reduce(first)
        np.testing.assert_array_equal(second, 3 * total(3, SEGMENT))
        np.testing.assert_array_equal(first, total(3, SEGMENT))

    everywhere(calm, call)


def test_arrays_outlive_their_ring(calm_cluster: Cluster) -> None:
    """Results and arrays of ``empty`` stay valid after ``close``."""

    def call(ring: ringd.Ring) -> tuple[np.ndarray, np.ndarray]:
        buffer = ring.empty(SEGMENT, np.float32)
        buffer[:] = 7
        return ring.all_reduce(tensor(ring.rank, SEGMENT)), buffer

    with connected(calm_cluster, "outlive") as rings:
        kept = everywhere(rings, call)
    del rings
    gc.collect()
    for result, buffer in kept:
        np.testing.assert_array_equal(result, total(3, SEGMENT))
        np.testing.assert_array_equal(buffer, np.full(SEGMENT, 7))


def test_budget(place: Path) -> None:
    """What does not fit is refused with the setting's name; what comes free can be used again."""
    with Cluster(place, 2, settings='[ipc]\nsegment_budget = "8MiB"\n') as cluster:
        cluster.start().wait_ready()
        with connected(cluster) as rings:
            for error in outcomes(rings, lambda ring: ring.all_reduce(np.zeros(9 << 20, np.int8))):
                assert isinstance(error, ringd.ResourceExhausted)
                assert "ipc.segment_budget" in str(error)
            buffers = [ring.empty(6 << 20, np.int8) for ring in rings]
            with pytest.raises(ringd.ResourceExhausted, match=r"ipc\.segment_budget"):
                rings[0].empty(6 << 20, np.int8)
            for error in outcomes(rings, lambda ring: ring.all_reduce(np.zeros(2 << 20, np.int8))):
                assert isinstance(error, ringd.ResourceExhausted)
            buffers.clear()
            # Kept results beyond half of the budget move to ordinary memory.
            kept = begin(
                rings,
                lambda ring: [ring.all_reduce(tensor(ring.rank, 250_000, s)) for s in range(20)],
            )
            for call in kept:
                for seed, result in enumerate(call.result()):
                    np.testing.assert_array_equal(result, total(2, 250_000, seed))
