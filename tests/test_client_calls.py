"""Calls under way: their order, results, errors and acknowledgements, each its own."""

import sys
import time

import numpy as np
import pytest
from clientkit import LARGE, SMALL, fake, pool_of, tell
from fake_daemon import eventually

import ringd
from ringd.border.limits import Limits
from ringd.wire.border import messages as border


def test_barrier_returns(ring):
    """A barrier carries nothing and returns nothing."""
    assert ring.barrier() is None
    assert ring.barrier(timeout=5, name="here") is None


def test_async_calls_keep_their_order_and_results(ring):
    """Many calls in flight, small and large, each get their own result, in any order of waiting."""
    inputs = [np.full(1 + 97 * (i % 30), float(i)) for i in range(200)]
    works = [ring.all_reduce_async(x) for x in inputs]
    for x in inputs:
        x[:] = -1  # handed over means free to be reused
    for i in reversed(range(200)):
        result = works[i].wait()
        assert (result.shape, result[0], result[-1]) == (inputs[i].shape, 3.0 * i, 3.0 * i)
        assert works[i].wait() is result
        assert works[i].done() is True
    assert repr(works[3]) == "<ringd.Work op 3, all_reduce sum float64[292], done>"


def test_done_fills_out(ring):
    """Once done() says so, *out* has its values, and not before."""
    x = np.ones(5000)
    out = np.zeros(5000)
    work = ring.all_reduce_async(x, out=out)
    deadline = time.monotonic() + 10
    while not work.done():
        assert time.monotonic() < deadline
    assert out.tolist() == [3.0] * 5000


def test_wait_with_a_timeout_leaves_the_call_going(tmp_path):
    """wait(timeout) gives up waiting, not the call."""
    with fake(tmp_path, size=3, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(1.0)
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.02)
        assert (work.done(), "open" in repr(work)) == (False, True)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
        assert work.wait(60) == 3.0


def test_dropped_work_still_takes_place(ring):
    """A handle that nobody keeps does not cancel the call, nor leak its memory."""
    pool = pool_of(ring)
    for _ in range(50):
        ring.all_reduce_async(np.ones(100_000))
    ring.barrier()
    ring.barrier()
    pool._collect()
    assert (pool.lent, pool.used) == (0, 0)


def test_several_rings_in_one_process(daemon):
    """Groups of one process are independent of each other."""
    rings = [ringd.connect(daemon.path, f"g{i}", timeout=10) for i in range(5)]
    works = [
        (i, ring.all_reduce_async(np.full(2000, float(i)))) for i, ring in enumerate(rings)
    ] * 2
    assert [work.wait()[0] for _, work in works] == [3.0 * i for i, _ in works]
    for ring in rings:
        ring.close()


def test_window_bounds_unreleased_calls(tmp_path):
    """Only so many calls may be unfinished anywhere; the next waits until others finish."""
    with fake(tmp_path, size=3, limits=Limits(window=4), release=False) as (daemon, ring):
        works = [ring.all_reduce_async(float(i)) for i in range(4)]
        assert [work.wait() for work in works] == [0.0, 3.0, 6.0, 9.0]
        with pytest.raises(ringd.DeadlineExceeded, match=r"ipc\.window"):
            ring.all_reduce(4.0, timeout=0.05)
        daemon.handler.release = True
        client = daemon.run(lambda: daemon.server.clients)[0]
        join_id = daemon.handler.joins[client]
        daemon.run(lambda: client.send(border.Released(join_id, 4)))
        assert ring.all_reduce(4.0, timeout=10) == 12.0


def test_failed_call_is_that_calls_alone(tmp_path):
    """An error that the daemon reports ends its call; the next one goes on."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Failed(join_id, 0, 1, "mismatch", "a: x; b: y"))
        for _ in range(2):
            with pytest.raises(ringd.Mismatch, match="a: x; b: y"):
                work.wait(30)
        assert "failed: a: x; b: y" in repr(work)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(LARGE), 2 * LARGE)


def test_answer_of_a_wrong_length_is_an_error(tmp_path):
    """A result that cannot be the call's is never handed to the program."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        for payload in (None, b"short"):
            work = ring.all_reduce_async(SMALL)
            eventually(lambda: daemon.handler.submitted)
            call = daemon.handler.submitted.pop()
            reply = border.Completed(call.message.join_id, call.message.seq, 0, 7)
            daemon.run(lambda: call.client.send(reply, payload))  # noqa: B023 - runs at once
            with pytest.raises(ringd.RingError, match="another length"):
                work.wait(30)


def test_acked_floor_rises_with_each_answer(daemon, ring):
    """The daemon learns which outcomes have arrived."""
    for _ in range(5):
        ring.all_reduce(1.0)
    acked = daemon.run(lambda: [call.message.acked for call in daemon.handler.submitted[-5:]])
    assert acked == [0, 1, 2, 3, 4]


def test_outcome_is_acknowledged_where_somebody_waits_for_that(tmp_path):
    """At once, without a further call; in order, whatever the order of the outcomes."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        works = [ring.all_reduce_async(SMALL) for _ in range(3)]
        eventually(lambda: len(daemon.handler.submitted) == 3)

        def complete(i, ask):
            daemon.handler.ask_ack = ask
            daemon.handler.complete(daemon.handler.submitted[i], 0)

        daemon.run(lambda: complete(1, ask=True))
        works[1].wait(30)
        daemon.run(lambda: complete(0, ask=False))
        works[0].wait(30)
        eventually(lambda: daemon.handler.acks == [2])
        daemon.run(lambda: complete(2, ask=False))
        works[2].wait(30)
        assert daemon.run(lambda: daemon.handler.acks) == [2]


def test_outcome_is_acknowledged_also_while_the_program_computes(tmp_path):
    """It makes no call and waits for none; its daemon wakes it, as somebody waits for that."""
    with fake(tmp_path, ask_ack=True) as (daemon, ring):
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: daemon.handler.acks == [1])
        np.testing.assert_array_equal(work.wait(), 2 * SMALL)


def test_a_small_call_runs_few_functions(ring):
    """The time of a small call is that of the functions that it runs: others are run when needed.

    The bound has room for what another version of Python counts, and none for a second look.
    """

    def functions():
        seen = []

        def note(frame, event, _):
            if event == "call":
                seen.append(frame.f_code.co_name)

        sys.setprofile(note)
        try:
            ring.all_reduce(SMALL)
        finally:
            sys.setprofile(None)
        return seen

    found = min((functions() for _ in range(100)), key=len)
    assert len(found) <= 49, sorted(found)
