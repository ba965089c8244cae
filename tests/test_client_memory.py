"""Shared memory of calls: used again, lent by ring.empty, bounded, and missing."""

import gc
import os
import threading

import ml_dtypes
import numpy as np
import pytest
from clientkit import INLINE_LIMIT, fake, pool_of
from fake_daemon import eventually, mapped

import ringd
from ringd.border.limits import Limits
from ringd.client import pool as pool_module
from ringd.client.retention import Retention
from tests.ringkit import Call


def test_result_memory_is_reused_when_the_array_is_gone(ring):
    """The same warm memory serves call after call; a kept result is never overwritten."""
    pool = pool_of(ring)
    x = np.ones(100_000)
    kept = ring.all_reduce(x)[10:20]
    for i in range(100):
        x[:] = i
        assert ring.all_reduce(x)[-1] == 3 * i
    assert kept.tolist() == [3.0] * 10
    assert len(pool) <= 4
    del kept
    gc.collect()
    ring.all_reduce(x)
    pool._collect()
    assert pool.lent == 0
    assert len(pool) <= 4


def test_results_beyond_half_the_budget_are_copied_out(tmp_path):
    """A program that keeps all its results cannot starve its calls."""
    limits = Limits(segment_budget=4 << 20, inline_limit=INLINE_LIMIT)
    with fake(tmp_path, size=3, limits=limits) as (_, ring):
        kept = [ring.all_reduce(np.full(50_000, float(i))) for i in range(50)]
        assert [array[-1] for array in kept] == [3.0 * i for i in range(50)]
        pool = pool_of(ring)
        assert 0 < pool.lent <= pool.budget // 2
        assert pool.size <= pool.budget
        assert any(array.base is None for array in kept)


def test_empty_is_handed_over_without_a_copy(daemon, ring):
    """An array of ring.empty goes by reference, with *hold*, and so do its contiguous views."""
    x = ring.empty((300, 40), np.float64)
    x[:] = np.arange(12000).reshape(300, 40)
    expected = 3 * x
    for view, whole in [
        (x, True),
        (x[100:200], True),
        (x.reshape(-1)[7:], True),
        (x[:, 3:], False),
    ]:
        rows = expected[100:200] if view.shape == (100, 40) else None
        result = ring.all_reduce(view)
        message = daemon.run(lambda: daemon.handler.submitted[-1].message)
        assert message.hold is whole
        if rows is not None:
            np.testing.assert_array_equal(result, rows)
    np.testing.assert_array_equal(ring.all_reduce(x, out=x), expected)
    np.testing.assert_array_equal(ring.all_reduce(ring.all_reduce(x)), 9 * expected)
    # A result was not asked for as an input, so it is copied like any other array.
    assert daemon.run(lambda: daemon.handler.submitted[-1].message.hold) is False


def test_empty_is_an_ordinary_array(ring):
    """Shapes, dtypes and defaults are numpy's."""
    assert ring.empty(5).dtype == np.float32
    assert ring.empty((), np.int8).shape == ()
    assert ring.empty((0, 5)).shape == (0, 5)
    assert ring.empty([700, 2], ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    big = ring.empty(np.int64(5000))
    assert (big.shape, big.flags.c_contiguous, big.flags.writeable) == ((5000,), True, True)


@pytest.mark.parametrize("dtype", [object, "S4", "M8[s]"])
def test_empty_of_what_cannot_be_reduced_is_refused(ring, dtype):
    """As all_reduce would refuse it later."""
    with pytest.raises(TypeError, match="cannot be handed over"):
        ring.empty((3,), dtype)


def test_empty_beyond_the_budget_names_the_setting(ring):
    """What cannot fit is an error that says what to raise."""
    with pytest.raises(ringd.ResourceExhausted, match=r"ipc\.segment_budget"):
        ring.empty(1 << 40, np.float64)


def test_array_in_shared_memory_survives_its_ring(daemon):
    """Results and buffers are good after close."""
    with ringd.connect(daemon.path, "other", timeout=10) as ring:
        result = ring.all_reduce(np.ones(10_000))
        buffer = ring.empty(10_000)
    buffer[:] = 1
    gc.collect()
    assert (result.sum(), buffer.sum()) == (30_000, 10_000)


def test_memory_of_a_closed_ring_goes_with_its_last_array(daemon):
    """Also while the ring's name is kept; a result that is fetched after the end is no other."""
    before = mapped()
    with ringd.connect(daemon.path, "other", timeout=10) as ring:
        result = ring.all_reduce(np.ones(100_000))
        small = ring.all_reduce(np.ones(100_000))[:10]
        buffer = ring.empty(100_000)
        work = ring.all_reduce_async(np.ones(100_000))
        eventually(lambda op=work._op: op.ended or not ring.state)  # the latter takes it in
    late = work.wait()
    assert (result.sum(), small.sum(), late.sum()) == (300_000, 30, 300_000)
    buffer[:] = 1
    del result, buffer, work
    gc.collect()
    pool = pool_of(ring)
    pool.trim()
    assert (small.sum(), late.sum()) == (30, 300_000)
    del small, late
    eventually(lambda: mapped() == before)
    with pytest.raises(ringd.RingError, match="closed"):
        pool.take(100_000)


def test_call_gives_back_what_is_too_much_before_it_takes_more(ring):
    """Also where that is no whole segment: an array that is kept stands in each."""
    pool = pool_of(ring)
    ring.all_reduce(np.zeros(4 << 20, np.int8))
    kept = [ring.empty(10_000)]
    while pool._idle():
        kept.append(ring.empty(100_000))
    before = set(pool._segments)
    pool.retention = Retention()
    ring.all_reduce(np.zeros(7 << 20, np.int8))
    assert before - set(pool._segments)
    assert before <= set(pool._records)


@pytest.mark.parametrize("error", [1, 38])
def test_without_shared_memory_all_goes_inside_messages(tmp_path, monkeypatch, error):
    """Where the system gives no shared memory, large tensors still arrive, up to a limit."""

    def forbidden(_size):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(pool_module, "create_segment", forbidden)
    limits = Limits(inline_limit=INLINE_LIMIT, max_message=10 << 20)
    with fake(tmp_path, size=3, limits=limits) as (_, ring):
        x = np.arange(1 << 20, dtype=np.float64)  # 8 MiB
        np.testing.assert_array_equal(ring.all_reduce(x), 3 * x)
        assert ring.empty(5000).shape == (5000,)
        with pytest.raises(ringd.ResourceExhausted, match=r"ipc\.max_message"):
            ring.all_reduce(np.ones(2 << 20))
        assert ring.all_reduce(1.0) == 3.0


def test_full_shared_memory_is_an_error_of_that_call(ring, monkeypatch):
    """No memory for a call: a clear error, and the next call goes on."""

    def full(_size):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "create_segment", full)
        with pytest.raises(ringd.ResourceExhausted, match="No space left on device"):
            ring.all_reduce(np.ones(1 << 20))
    assert ring.all_reduce(np.ones(1 << 20))[0] == 3.0


def test_submission_waits_for_memory_to_come_back(tmp_path):
    """With all memory in open calls the next one waits; with nothing to wait for it fails."""
    limits = Limits(segment_budget=4 << 20, inline_limit=INLINE_LIMIT)
    with fake(tmp_path, size=3, limits=limits, hold=True) as (daemon, ring):
        x = np.ones(1 << 17)  # 1 MiB
        first = ring.all_reduce_async(x)
        with pytest.raises(ringd.ResourceExhausted, match="held by open calls"):
            ring.all_reduce_async(x, timeout=0.05)
        timer = threading.Timer(
            0.05,
            lambda: daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0])),
        )
        timer.start()
        second = ring.all_reduce_async(x, timeout=20)
        timer.join()
        del first
        eventually(lambda: len(daemon.handler.submitted) == 2)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[1]))
        assert second.wait()[0] == 3.0
        del second
        buffers = [ring.empty(1 << 18) for _ in range(2)]
        with pytest.raises(ringd.ResourceExhausted, match="arrays that the program keeps"):
            ring.all_reduce(x)
        del buffers
        call = Call(lambda: ring.all_reduce(x))
        eventually(lambda: len(daemon.handler.submitted) == 3)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[2]))
        assert call.result()[0] == 3.0
