"""Who waits is woken: by its answer, another thread, or Ctrl-C; nobody is woken in vain."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from clientkit import INLINE_LIMIT, SMALL, fake, main_sleeps
from fake_daemon import eventually

import ringd
from ringd.border.limits import Limits
from ringd.client.keeper import Keeper
from ringd.client.session import Op
from ringd.collective.call import Call
from ringd.wire.border import messages as border
from tests.ringkit import Call as Begun


def test_who_waits_goes_on_where_another_thread_has_put_the_end_off(tmp_path, monkeypatch):
    """As one does that finds the time over, and no memory to leave the daemon the input with."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: daemon.handler.submitted)
        connection, (op,) = ring._connection, ring._stay.group.session.ops.values()
        wait, found = connection.wait, []
        op.give_up = time.monotonic()

        def beside_another(done, until):
            op.give_up = None
            if found:
                daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
            found.append(wait(done, until))
            return found[-1]

        monkeypatch.setattr(connection, "wait", beside_another)
        np.testing.assert_array_equal(work.wait(), 2 * SMALL)
        assert found == [False, True]


def test_threads_share_a_ring(ring):
    """Many threads, small and large calls, waits of all kinds: everyone gets their own result."""
    failures = []

    def work(number):
        try:
            for i in range(60):
                x = np.full(10 if i % 2 else 2000, number * 1000.0 + i)
                if i % 3:
                    result = ring.all_reduce(x, timeout=30)
                else:
                    handle = ring.all_reduce_async(x, timeout=30)
                    while i % 4 == 0 and not handle.done():
                        pass
                    result = handle.wait(30)
                if not (result == 3 * x).all():
                    failures.append((number, i))
        except Exception as error:  # noqa: BLE001 - to be seen by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []


def test_waiting_thread_hears_what_another_took_in(tmp_path):
    """A thread that sleeps on the sockets is woken when another one takes its answer in."""
    with fake(tmp_path, size=3, hold=True) as (daemon, ring):
        works = [ring.all_reduce_async(float(i)) for i in range(3)]
        results = {}
        threads = [
            threading.Thread(target=lambda i=i: results.setdefault(i, works[i].wait(20)))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        complete = daemon.handler.complete
        for i in (2, 0, 1):
            daemon.run(lambda i=i: complete(daemon.handler.submitted[i]))
            while not works[i].done():  # this thread takes the answer in, if it is first
                pass
        for thread in threads:
            thread.join(120)
        assert results == {0: 0.0, 1: 3.0, 2: 6.0}


@pytest.mark.parametrize("count", [1, 10_000, 1_000_000], ids=["4 B", "40 KB", "4 MB"])
def test_blocking_call_wakes_nobody_without_need(daemons, count, monkeypatch):
    """A call costs this process one wake-up of its caller, and none of the keeper thread."""

    def switches():
        """Return the voluntary context switches of each of our threads (Linux tells)."""
        threads = {}
        root = Path("/proc/self/task")
        for task in root.iterdir() if root.exists() else ():
            with contextlib.suppress(OSError):
                status = (task / "status").read_text()
                threads[task.name] = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
        return threads

    keepers = []
    run = Keeper._run
    monkeypatch.setattr(
        Keeper, "_run", lambda keeper: (keepers.append(threading.get_native_id()), run(keeper))
    )
    daemons.start()
    x = np.ones(count, np.float32)
    with ringd.connect(daemons.path, timeout=10) as ring:
        for _ in range(5):
            ring.all_reduce(x)
        polls = []
        channel = ring._connection.pump.channel
        poll = channel.poll
        channel.poll = lambda timeout: (polls.append(timeout), poll(timeout))[1]
        keeper = str(keepers[0])
        before = switches()
        for _ in range(50):
            ring.all_reduce(x)
        after = switches()
        assert len(polls) <= 55  # one sleep for each call, none in vain
        if keeper in before:  # a timer of its own may wake it meanwhile
            assert after[keeper] <= before[keeper] + 5


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_the_ring_usable(daemons):
    """Ctrl-C in a waiting call is KeyboardInterrupt at once; the call and the ring go on."""
    daemons.start("--hold")
    with ringd.connect(daemons.path, timeout=10) as ring:
        work = ring.all_reduce_async(SMALL)
        pump = ring._connection.pump
        killing = Begun(
            lambda: (eventually(lambda: main_sleeps(pump)), os.kill(os.getpid(), signal.SIGINT))
        )
        with pytest.raises(KeyboardInterrupt):
            work.wait(30)
        killing.result()
        daemons.kill()
        daemons.start()
        np.testing.assert_array_equal(work.wait(30), 2 * SMALL)


def test_waiting_for_what_was_never_handed_over_ends_without_memory(tmp_path, monkeypatch):
    """Nobody reads from its input, which therefore need not be made private."""

    def no_memory(*_):
        raise OSError(errno.ENOMEM, "no memory")

    limits = Limits(inline_limit=INLINE_LIMIT, window=1)
    with fake(tmp_path, limits=limits, hold=True) as (_, ring):
        x = ring.empty(5000, np.float64)
        ring.all_reduce_async(SMALL, timeout=60)
        monkeypatch.setattr("ringd.client.pool.detach", no_memory)
        work = ring.all_reduce_async(x, timeout=0.2)
        begun = time.process_time()
        with pytest.raises(ringd.DeadlineExceeded, match="its deadline passed"):
            work.wait(5.0)
        assert time.process_time() - begun < 1.0


def test_forming_ring_is_waited_for(tmp_path):
    """wait_ready waits for the news that the ring is ready, or says that it is not."""
    with fake(tmp_path, state="forming") as (daemon, ring):
        assert ring.state == "forming"
        with pytest.raises(ringd.NotReady, match=r"forming after 0\.02 s"):
            ring.wait_ready(0.02)
        daemon.broadcast(border.RingState("ready", 9))
        ring.wait_ready(10)
        assert (ring.state, ring.generation) == ("ready", 9)


@pytest.mark.parametrize("error", [None, ringd.RingError("why")], ids=["well", "badly"])
def test_a_call_has_its_outcome_before_it_has_ended(error):
    """Who waits looks at that without the lock, and at the rest afterwards."""
    op = Op(Call("barrier", "", "", (), ""), 0, None)
    seen = []

    def note(*_):
        seen.append((op.ended, op.error, op.reply))
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        op.finish(b"") if error is None else op.fail(error)
    finally:
        sys.settrace(before)
    outcomes = {(error, reply) for ended, error, reply in seen if ended}
    assert outcomes == {(error, b"" if error is None else None)}
