"""Callbacks, futures and await: told of a call's end, though nobody waits for it."""

import asyncio
import logging
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from clientkit import BOTH, LARGE, SMALL, fake
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.client import stay as stay_module


def complete_all(daemon):
    """Have a fake daemon that holds calls complete those that it has."""
    daemon.run(lambda: [daemon.handler.complete(call) for call in daemon.handler.submitted])


def run(directory, program):
    """Run *program*, which is given a daemon's socket, to its end; the daemon completes nothing."""
    with FakeDaemon(directory / "s", hold=True) as daemon:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@BOTH
def test_a_callback_is_called_once_without_anybody_waiting(tmp_path, x):
    """With the work, in another thread, when the result is there."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        told = []
        work = ring.all_reduce_async(x)
        work.add_done_callback(lambda work: told.append((work, threading.current_thread())))
        eventually(lambda: daemon.handler.submitted)
        assert told == []
        complete_all(daemon)
        eventually(lambda: told)
        [(of, thread)] = told
        assert of is work
        assert thread is not threading.main_thread()
        np.testing.assert_array_equal(of.wait(), 2 * x)


def test_a_callback_after_the_end_is_called_at_once(tmp_path):
    """In the thread that adds it."""
    with fake(tmp_path) as (_, ring):
        work = ring.all_reduce_async(SMALL)
        work.wait()
        told = []
        work.add_done_callback(lambda _: told.append(threading.current_thread()))
        assert told == [threading.main_thread()]


def test_many_callbacks_of_many_calls_come_each_once(tmp_path):
    """Also of calls that others wait for, and several for one call."""
    with fake(tmp_path) as (_, ring):
        told = []
        works = [ring.all_reduce_async(SMALL + i) for i in range(500)]
        for i, work in enumerate(works):
            work.add_done_callback(lambda _, i=i: told.append(i))
            work.add_done_callback(lambda _, i=i: told.append(i))
        for i, work in enumerate(works):
            np.testing.assert_array_equal(work.wait(30), 2 * (SMALL + i))
        eventually(lambda: len(told) == 1000)
        assert sorted(told) == sorted(2 * list(range(500)))
        eventually(lambda: not ring._connection.notifier._running.locked())


def test_a_callback_may_make_calls(tmp_path):
    """It has a thread of its own, so that nothing stands still for it."""
    with fake(tmp_path) as (_, ring):
        told = []
        ring.all_reduce_async(SMALL).add_done_callback(
            lambda work: told.append(ring.all_reduce(work.wait(), timeout=30))
        )
        eventually(lambda: told)
        np.testing.assert_array_equal(told[0], 4 * SMALL)


def test_a_callback_that_fails_keeps_no_other_from_being_called(tmp_path, caplog):
    """What it raises goes to the log."""
    with fake(tmp_path, hold=True) as (daemon, ring), caplog.at_level(logging.ERROR):
        told = []
        for number in range(3):
            work = ring.all_reduce_async(SMALL)
            work.add_done_callback(lambda _: 1 / 0)
            work.add_done_callback(lambda _, number=number: told.append(number))
        eventually(lambda: len(daemon.handler.submitted) == 3)
        complete_all(daemon)
        eventually(lambda: len(told) == 3)
        assert caplog.text.count("ZeroDivisionError") == 3
        assert "a callback of all_reduce sum float64[10] failed" in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_callback_raises_the_others_are_told(tmp_path, caplog, error):
    """An exit, too, is logged; so it is where the call has ended already."""

    def fail(_work):
        raise error

    with fake(tmp_path, hold=True) as (daemon, ring), caplog.at_level(logging.ERROR):
        work = ring.all_reduce_async(SMALL)
        work.add_done_callback(fail)
        future = work.future()
        eventually(lambda: daemon.handler.submitted)
        complete_all(daemon)
        np.testing.assert_array_equal(future.result(30), 2 * SMALL)
        work.add_done_callback(fail)
        assert caplog.text.count("a callback of all_reduce sum float64[10] failed") == 2


@pytest.mark.parametrize("way", ["future().result()", "wait()"])
def test_a_program_that_failed_ends_however_its_threads_wait(tmp_path, way):
    """A thread that waits for a future keeps it alive no longer than one that waits itself."""
    program = f"""
        import sys
        from concurrent.futures import ThreadPoolExecutor
        import ringd
        ring = ringd.connect(sys.argv[1], timeout=10)
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: ring.barrier_async().{way})
            raise RuntimeError("the main thread failed")
    """
    done = run(tmp_path, program)
    assert done.returncode == 1
    assert "the main thread failed" in done.stderr


def test_a_callback_is_called_after_the_next_daemon_has_come(tmp_path):
    """The call goes on there; nobody has touched the ring since."""
    told = []
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        ring.all_reduce_async(LARGE).add_done_callback(told.append)
        eventually(lambda: first.handler.submitted)
    with FakeDaemon(tmp_path / "s"):
        eventually(lambda: told)
        np.testing.assert_array_equal(told[0].wait(), 2 * LARGE)
        ring.close()


def test_a_deadline_that_passes_calls_back(tmp_path, monkeypatch):
    """Also where the client decides by itself, as its daemon does not answer."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    with fake(tmp_path, hold=True) as (_, ring):
        told = []
        ring.all_reduce_async(SMALL).add_done_callback(told.append)  # which has no deadline
        late = ring.all_reduce_async(SMALL, timeout=0.05)
        late.add_done_callback(told.append)
        eventually(lambda: told)
        assert told == [late]
        with pytest.raises(ringd.DeadlineExceeded):
            late.wait()


@pytest.mark.parametrize("way", ["close", "abandon"])
def test_the_end_of_a_ring_calls_back(tmp_path, way):
    """The calls that were open have ended with an error."""
    with fake(tmp_path, hold=True) as (_, ring):
        told = []
        work = ring.all_reduce_async(SMALL)
        work.add_done_callback(told.append)
        (ring if way == "close" else ring._stay).__getattribute__(way)()
        eventually(lambda: told == [work])
        with pytest.raises(ringd.RingError, match="closed"):
            work.wait()


def test_a_future_has_the_result_or_the_error(tmp_path):
    """As those of concurrent.futures, but that it cannot be cancelled."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        good, bad = ring.all_reduce_async(SMALL).future(), ring.all_reduce_async(SMALL).future()
        assert not good.cancel()
        eventually(lambda: len(daemon.handler.submitted) == 2)
        first, second = daemon.handler.submitted
        daemon.run(lambda: daemon.handler.complete(first))
        np.testing.assert_array_equal(good.result(30), 2 * SMALL)
        assert not bad.done()
        text = "the reason"
        daemon.run(
            lambda: daemon.handler.submit_failed(second.client, second.message, ringd.Refused(text))
        )
        assert isinstance(bad.exception(30), ringd.Refused)


def test_calls_are_awaited_in_asyncio(tmp_path):
    """Several at once; a task that is cancelled leaves its call alone."""

    async def program(ring, daemon):
        works = [ring.all_reduce_async(SMALL + i) for i in range(10)]
        tasks = [asyncio.ensure_future(wait(work)) for work in works]
        await asyncio.sleep(0.05)
        tasks[3].cancel()
        await asyncio.to_thread(eventually, lambda: len(daemon.handler.submitted) == 10)
        await asyncio.to_thread(complete_all, daemon)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[3], asyncio.CancelledError)
        found[3] = await works[3]
        for i, result in enumerate(found):
            np.testing.assert_array_equal(result, 2 * (SMALL + i))

    async def wait(work):
        return await work

    with fake(tmp_path, hold=True) as (daemon, ring):
        asyncio.run(program(ring, daemon))


def test_callbacks_keep_no_program_alive(tmp_path):
    """At its end they come with an error, or not at all."""
    program = """
        import sys
        import ringd
        from ringd import Work
        ring = ringd.connect(sys.argv[1], timeout=10)
        ring.all_reduce_async([1.0]).add_done_callback(Work.done)
    """
    done = run(tmp_path, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_callback_under_way_is_left_at_a_programs_end(tmp_path):
    """Not ended where it is: in C++, as of torch, that would abort the process."""
    program = """
        import sys, threading, time
        import ringd
        ring = ringd.connect(sys.argv[1], timeout=10)
        other = ringd.connect(sys.argv[1], timeout=10, group="other")
        begun = threading.Event()

        def callback(work):
            begun.set()
            time.sleep(0.2)
            print("through", flush=True)

        for _ in range(3):
            other.all_reduce_async([1.0]).add_done_callback(callback)
        other.close()
        assert begun.wait(30)
        raise RuntimeError
    """
    done = run(tmp_path, program)
    assert (done.returncode, done.stdout) == (1, "through\n")
