"""Interrupts, signal handlers and finalisers at every instant of a call.

A timer's signal comes a little later with each call, from its first microsecond to beyond its end:
so the places where Python lets a handler in are met one after the other, in all that a call does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from alarms import (
    LEAST_HITS,
    Signal,
    instants,
    interrupt,
    interrupt_twice,
    interrupted,
    no_alarm_left,  # noqa: F401
    swallowed,
)
from clientkit import BOTH, INLINE_LIMIT, LARGE, fake, main_sleeps, pool_of, session_of
from fake_daemon import FakeDaemon, eventually, open_fds

import ringd
from ringd.border.limits import Limits
from ringd.client.channel import Channel
from ringd.client.keeper import Keeper
from ringd.client.pump import Pump
from ringd.client.waker import Waker
from tests.ringkit import Call


@pytest.fixture
def ring(tmp_path):
    """A ring of a fake daemon."""
    with fake(tmp_path) as (_, ring):
        yield ring


def usable(ring, x):
    """Make sure that *ring* computes as ever."""
    assert np.array_equal(ring.all_reduce(x, timeout=10.0), 2 * x)


@BOTH
def test_an_interrupt_anywhere_leaves_the_ring_usable(ring, x):
    """Whenever a call is interrupted, it is made once or not at all, and the next one is right."""
    hits = 0
    for delay in instants():
        before = session_of(ring).next_seq
        hits += interrupted(lambda: ring.all_reduce(x), delay)
        assert session_of(ring).next_seq - before in (0, 1)
        usable(ring, x)
    assert hits >= LEAST_HITS
    eventually(lambda: session_of(ring).acked == session_of(ring).next_seq)


@BOTH
def test_an_interrupt_anywhere_in_a_call_of_many_tensors_leaves_the_ring_usable(ring, x):
    """Of two dtypes, so it is two calls, of which the second one may not be made any more."""
    xs = [x, np.arange(3), 2 * x]
    hits = 0
    for delay in instants():
        before = session_of(ring).next_seq
        hits += interrupted(lambda: ring.all_reduce_coalesced(xs), delay)
        assert session_of(ring).next_seq - before in (0, 1, 2)
        usable(ring, x)
        found = ring.all_reduce_coalesced([x, np.arange(3)], timeout=10.0)
        assert [array.tolist() for array in found] == [(2 * x).tolist(), [0, 2, 4]]
    assert hits >= LEAST_HITS
    eventually(lambda: session_of(ring).acked == session_of(ring).next_seq)


@BOTH
def test_a_second_interrupt_while_cleaning_up_leaves_the_ring_usable(ring, x):
    """One interrupt may follow another into whatever the first has set off."""
    chance = random.Random(3)
    hits = 0
    for delay in instants():
        twice = partial(interrupt_twice, chance.uniform(2e-6, 1e-4))
        hits += interrupted(lambda: ring.all_reduce(x), delay, twice)
        usable(ring, x)
    assert hits >= LEAST_HITS


def test_interrupts_of_many_calls_in_flight_lose_none(tmp_path):
    """Handed over beyond the window and interrupted at random: each call ends with its value."""
    chance = random.Random(4)
    hits = 0
    with fake(tmp_path, limits=Limits(inline_limit=INLINE_LIMIT, window=8)) as (_, ring):
        for delay in instants(150, 0.02):
            works = []

            def burst(works=works):
                for i in range(30):
                    works.append(ring.all_reduce_async(np.full(4, float(i))))
                for work in works:
                    work.wait()

            twice = partial(interrupt_twice, chance.uniform(2e-6, 1e-3))
            hits += interrupted(burst, delay, twice)
            for i, work in enumerate(works):
                assert np.array_equal(work.wait(10.0), np.full(4, 2.0 * i))
            usable(ring, np.ones(3))
    assert hits >= LEAST_HITS


def test_interrupts_leave_no_memory_behind(ring):
    """What an interrupted call had taken comes back."""
    hits = 0
    for delay in instants():
        hits += interrupted(lambda: ring.all_reduce(LARGE), delay)
    usable(ring, LARGE)
    gc.collect()
    pool, pump = pool_of(ring), ring._connection.pump
    eventually(lambda: not (session_of(ring).ops or pump.run(pump.settle)))
    pump.run(pool._collect)
    assert (pool.used, pool.lent) == (0, 0)
    assert hits >= LEAST_HITS


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("where", ["submitting", "waiting"])
def test_a_lent_input_is_private_after_an_interrupt(tmp_path, where, twice):
    """Whoever interrupts a call of a ring.empty array may write to it: the daemon keeps its own."""
    chance = random.Random(6)
    hits = 0
    with fake(tmp_path, hold=True) as (daemon, ring):
        for number, delay in enumerate(instants(), 1):
            x = ring.empty(5000, np.float64)
            x[:] = number
            call = partial(ring.all_reduce_async, x, name=str(number))
            if where == "waiting":
                call = partial(call().wait, 0.001)
            act = partial(interrupt_twice, chance.uniform(2e-6, 6e-5)) if twice else interrupt
            caught = False
            swallowed.clear()
            with contextlib.suppress(ringd.DeadlineExceeded):
                caught = interrupted(call, delay, act)
            del call  # with the handle: nobody can wait again
            hits += caught
            if caught and not swallowed:  # by the handle's own finaliser
                x[:] = -1.0
            assert daemon.run(lambda: complete_held(daemon.handler)) == []
    assert hits >= LEAST_HITS


def complete_held(handler):
    """End all calls; return those whose inputs are not what their names say."""
    held, handler.submitted = handler.submitted, []
    spoilt = []
    for call in held:
        source, name = call.message.source, call.message.call.name
        if source is not None and not call.message.outcome:
            values = np.frombuffer(call.client.view(source, writable=False), np.float64)
            if set(values) != {float(name)}:
                spoilt.append(name)
            handler.complete(call)
    return spoilt


def touch_everything(ring, work):
    """Do what a signal handler may be expected to do; return the number of calls that ended well.

    The others are refused: the handler interrupted its own thread within the library.
    """
    assert (ring.rank, ring.size, ring.node) == (0, 2, "fake")
    assert ring.state == "ready"
    assert ring.generation == 7
    assert repr(ring).startswith("<ringd.Ring group 'default', rank 0 of 2 (fake), ready")
    assert repr(work).startswith("<ringd.Work op ")
    work.done()
    good = 0
    for call, values in (
        (lambda: ring.empty(5000).shape, (5000,)),
        (lambda: ring.barrier(timeout=5.0), None),
        (lambda: ring.all_reduce(np.ones(4), timeout=5.0), np.full(4, 2.0)),
        (lambda: ring.all_reduce(np.ones(5000), timeout=5.0), np.full(5000, 2.0)),
        (lambda: work.wait(5.0), np.full(4, 2.0)),
    ):
        with contextlib.suppress(ringd.CalledFromHandler):
            assert np.array_equal(call(), values) or values is None
            good += 1
    return good


@BOTH
def test_a_handler_anywhere_may_use_the_ring(ring, x):
    """A signal handler in the midst of a call ends, and so does the call, with the right value."""
    hits, good = 0, []
    for delay in instants():
        work = ring.all_reduce_async(np.ones(4))
        alarm = Signal(delay, lambda work=work: good.append(touch_everything(ring, work)))
        with alarm:
            total = ring.all_reduce(x, timeout=10.0)
        assert np.array_equal(total, 2 * x)
        hits += alarm.acted
    assert len(good) == hits >= LEAST_HITS
    assert good.count(5) >= LEAST_HITS


@pytest.mark.parametrize("then_exit", [False, True])
def test_a_handler_anywhere_may_close_the_ring(tmp_path, then_exit):
    """close() in a handler returns at once; the call beneath ends, with its value or an error."""

    def handler(ring):
        ring.close()
        if then_exit:
            sys.exit(0)

    hits = 0
    with FakeDaemon(tmp_path / "s", limits=Limits(inline_limit=INLINE_LIMIT)) as daemon:
        for delay in instants(150):
            eventually(lambda: not daemon.handler.groups)
            ring = ringd.connect(daemon.path, timeout=10)
            alarm = Signal(delay, partial(handler, ring))
            with contextlib.suppress(ringd.RingError, SystemExit), alarm:
                ring.all_reduce(np.ones(4), timeout=10.0)
            ring.close()
            hits += alarm.acted
    assert hits >= LEAST_HITS


def keepers():
    """Return the frames of the connections' threads."""
    frames = []
    for innermost in sys._current_frames().values():
        frame = innermost
        while frame is not None and frame.f_code is not Keeper._run.__code__:
            frame = frame.f_back
        frames += [frame] if frame is not None else []
    return frames


@pytest.fixture
def no_collection():
    """The collector runs only when it is told to: Python swallows what strikes a finaliser."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("twice", [False, True])
def test_an_interrupt_anywhere_in_connect_leaves_nothing_behind(tmp_path, twice):
    """Neither a place in the group, nor a thread, nor a descriptor."""
    chance = random.Random(5)
    hits = 0
    with FakeDaemon(tmp_path / "s") as daemon:
        ringd.connect(daemon.path, timeout=10).close()
        gc.collect()
        eventually(lambda: not daemon.handler.groups)
        before = open_fds()
        for number, delay in enumerate(instants(300, 4e-3)):
            rings = []

            def call(rings=rings, group=str(number)):
                rings.append(ringd.connect(daemon.path, group, timeout=10))

            act = partial(interrupt_twice, chance.uniform(2e-6, 1e-3)) if twice else interrupt
            hits += interrupted(call, delay, act)
            for ring in rings:
                ring.close()
        del rings, call
        gc.collect()
        eventually(lambda: not daemon.handler.groups)
        eventually(lambda: not keepers())
        eventually(lambda: open_fds() <= before)
    assert hits >= LEAST_HITS


def test_an_interrupt_as_the_thread_starts_leaves_the_group_free(tmp_path, monkeypatch):
    """To start a thread takes a while, in which the daemon may take us in."""
    start = Keeper.start

    def interrupted_start(keeper):
        start(keeper)
        eventually(lambda: daemon.handler.groups)
        raise KeyboardInterrupt

    with FakeDaemon(tmp_path / "s") as daemon:
        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "start", interrupted_start)
            with pytest.raises(KeyboardInterrupt):
                ringd.connect(daemon.path, timeout=10)
        assert not keepers()
        assert not daemon.handler.groups
        assert daemon.handler.gone == []


def test_interrupts_before_the_thread_exists_leave_no_descriptors(tmp_path, monkeypatch):
    """What waits for threads to wake belongs to somebody from the beginning."""

    def interrupt_it(*_arguments, **_options):
        raise KeyboardInterrupt

    gc.collect()
    before = open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "start", interrupt_it)
        for _ in range(10):
            with pytest.raises(KeyboardInterrupt):
                ringd.connect(tmp_path / "s", timeout=10)
    gc.collect()
    assert open_fds() <= before


def test_a_ring_whose_close_was_interrupted_is_hung_up_on_when_it_is_forgotten(tmp_path):
    """The group is free again, though nobody called close() once more."""
    with FakeDaemon(tmp_path / "s") as daemon:
        ring = ringd.connect(daemon.path, timeout=10)
        ring._stay.group.leave = interrupt
        with pytest.raises(KeyboardInterrupt):
            ring.close()
        del ring._stay.group.leave
        assert daemon.handler.groups
        del ring
        gc.collect()
        eventually(lambda: not daemon.handler.groups)


def test_an_interrupt_anywhere_in_close_can_be_followed_by_another_close(tmp_path):
    """A second close() finishes what an interrupt has left of the first."""
    hits = 0
    with FakeDaemon(tmp_path / "s") as daemon:
        for delay in instants(150, 3e-3):
            ring = ringd.connect(daemon.path, timeout=10)
            hits += interrupted(ring.close, delay)
            ring.close()
            eventually(lambda: not daemon.handler.groups)
    assert hits >= LEAST_HITS


def test_a_handler_in_a_wait_may_wait_itself(tmp_path):
    """While a call sleeps, a handler in its thread can make another one and see it end."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        seen = []

        def handler(_signum, _frame):
            ringd_call = ring.all_reduce_async(np.ones(3), timeout=10.0)
            eventually(lambda: len(daemon.handler.submitted) == 2)
            daemon.run(lambda: [daemon.handler.complete(c) for c in daemon.handler.submitted])
            seen.append(ringd_call.wait())

        old = signal.signal(signal.SIGUSR1, handler)
        try:
            main = threading.main_thread().ident
            poker = threading.Thread(
                target=lambda: (
                    eventually(lambda: daemon.handler.submitted),
                    eventually(lambda: main_sleeps(ring._connection.pump)),
                    signal.pthread_kill(main, signal.SIGUSR1),
                )
            )
            poker.start()
            assert np.array_equal(ring.all_reduce(np.ones(2), timeout=10.0), [2.0, 2.0])
            poker.join()
        finally:
            signal.signal(signal.SIGUSR1, old)
        assert np.array_equal(seen[0], np.full(3, 2.0))


@contextlib.contextmanager
def handling(handler):
    """Have *handler* called by SIGUSR1."""
    old = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, old)


@contextlib.contextmanager
def deaf_keeper(ring, monkeypatch):
    """Have the keeper listen to nothing until the end of this, or what it gives is set."""
    connection = ring._connection
    channel, deaf, over = connection.pump.channel, threading.Event(), threading.Event()
    wait_end = channel.wait_end
    monkeypatch.setattr(channel, "wait_end", lambda t: (deaf.set(), over.wait(30)) and wait_end(t))
    connection.keeper.wake()
    try:
        assert deaf.wait(30)
        yield over
    finally:
        over.set()


def tell_members(daemon, session, seen):
    """Say something over the lifeline; complete the call once that was *seen*."""

    def tell():
        daemon.run(lambda: next(iter(daemon.handler.joins)).tell_session(session, (1, 2)))
        eventually(lambda: seen)
        daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))

    return Call(tell)


def test_a_handler_that_acts_on_what_was_just_heard(tmp_path, monkeypatch):
    """It may come between the arrival of a word on the lifeline, and the look at that word."""

    class Interrupted(list):
        def extend(self, chunks):
            super().extend(chunks)
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGUSR1)

    seen = []
    with (
        fake(tmp_path, hold=True) as (daemon, ring),
        handling(lambda: seen.append(ring.rank)),
        deaf_keeper(ring, monkeypatch),
    ):
        ring._connection.pump.channel.heard = Interrupted()
        work = ring.all_reduce_async(np.ones(2))
        eventually(lambda: daemon.handler.submitted)
        telling = tell_members(daemon, session_of(ring).join_id, seen)
        work.wait(30)
        telling.result()
        assert session_of(ring).members == (1, 2)


def test_a_handler_within_the_listening_waits_for_no_other_thread(tmp_path, monkeypatch):
    """Another thread may be inside, and act on what was heard, when the handler asks."""
    seen = []

    def handler():
        other = threading.Thread(target=lambda: ring.generation)
        other.start()
        time.sleep(0.2)
        seen.append(ring.rank)
        other.join(120)
        seen.append(other.is_alive())

    with (
        fake(tmp_path, hold=True) as (daemon, ring),
        handling(handler),
        deaf_keeper(ring, monkeypatch),
    ):
        channel = ring._connection.pump.channel
        real = channel._hear

        def hear():
            real()
            in_main = threading.current_thread() is threading.main_thread()
            if in_main and not seen and channel.heard:
                signal.raise_signal(signal.SIGUSR1)

        monkeypatch.setattr(channel, "_hear", hear)
        work = ring.all_reduce_async(np.ones(2))
        eventually(lambda: daemon.handler.submitted)
        telling = tell_members(daemon, session_of(ring).join_id, seen)
        work.wait(30)
        telling.result()
        assert seen == [0, False]


def test_an_interrupt_while_the_daemons_end_is_taken_in(tmp_path, monkeypatch):
    """The next call waits for another daemon, as if there had been no interrupt."""
    with fake(tmp_path, hold=True) as (daemon, ring), deaf_keeper(ring, monkeypatch) as keeper:
        connection = ring._connection
        group = connection.groups
        real, times = group.lose, []

        def lose(channel):
            times.append(1)
            if len(times) == 1:
                raise KeyboardInterrupt
            real(channel)

        monkeypatch.setattr(group, "lose", lose)
        stopping = Call(lambda: (eventually(lambda: main_sleeps(connection.pump)), daemon.stop()))
        with pytest.raises(KeyboardInterrupt):
            ring.all_reduce(np.ones(2), timeout=30)
        keeper.set()
        stopping.result()
        eventually(lambda: connection.pump.channel is None)
        made = session_of(ring).next_seq
        work = ring.all_reduce_async(np.ones(2), timeout=30)
        assert session_of(ring).next_seq == made + 1
        with FakeDaemon(daemon.path):
            assert np.array_equal(work.wait(60), np.full(2, 2.0))


def test_a_message_that_cannot_be_sent_is_offered_to_the_next_daemon(tmp_path):
    """Whatever ZeroMQ says; the call counts, and ends with its value."""
    with fake(tmp_path) as (_, ring):
        ring._connection.pump.channel._dealer.close(linger=0)
        usable(ring, np.ones(2))


def test_a_handler_that_waits_in_a_wait_leaves_the_pipe_to_the_wait_beneath(tmp_path):
    """The ring is closed while one sleep interrupts the other: both calls end in words."""
    ended = []

    def handler():
        with pytest.raises(ringd.RingError, match="closed before"):
            ring.all_reduce(np.ones(2), timeout=10)
        ended.append("handler")

    def close():
        eventually(lambda: main_sleeps(pump))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        eventually(lambda: len(daemon.handler.submitted) == 2)
        time.sleep(0.02)
        ring.close()

    with FakeDaemon(tmp_path / "s", hold=True) as daemon, handling(handler):
        for number in range(20):
            ring = ringd.connect(daemon.path, str(number), timeout=10)
            pump = ring._connection.pump
            closer = threading.Thread(target=close)
            closer.start()
            with pytest.raises(ringd.RingError, match="closed before"):
                ring.all_reduce(np.ones(2), timeout=10)
            closer.join()
            eventually(lambda: not daemon.handler.submitted)
    assert len(ended) == 20


def test_a_channel_that_is_closed_as_a_handler_begins_to_wait_has_ended(tmp_path):
    """Its poller is the wait's beneath; by the time that it makes one, there is nothing to poll."""

    class Taken:
        def poll(self, _milliseconds):
            channel.close()
            raise RuntimeError

    wakers = Waker(), Waker()
    with FakeDaemon(tmp_path / "s") as daemon:
        channel = Channel(daemon.path, *wakers)
        channel._poller = Taken()
        assert channel.poll(10.0)
    for waker in wakers:
        waker.close()


def test_an_interrupt_of_a_wait_while_the_ring_is_closed_leaves_no_descriptor(tmp_path):
    """A thread that sleeps releases what it slept on, also if it leaves by an interrupt."""
    gc.collect()
    with fake(tmp_path, hold=True) as (_, ring):
        pump = ring._connection.pump
        poll, pipe = pump.channel.poll, pump.waker.reader
        begun = os.fstat(pipe)
        asleep, closing = threading.Event(), threading.Event()

        def interrupted_poll(timeout):
            asleep.set()
            gone = poll(timeout)
            if closing.is_set():
                eventually(lambda: pump._closing)
                raise KeyboardInterrupt
            return gone

        pump.channel.poll = interrupted_poll
        closer = Call(lambda: (asleep.wait(30), closing.set(), ring.close()))
        with pytest.raises(KeyboardInterrupt):
            ring.all_reduce(np.ones(2), timeout=30)
        closer.result()
        with contextlib.suppress(OSError):
            assert not os.path.samestat(os.fstat(pipe), begun)


def test_interrupted_waits_leave_nobody_who_seems_to_wait(tmp_path):
    """To wake one that is gone wakes nobody else."""
    hits = 0
    with fake(tmp_path, hold=True) as (_, ring):
        pump = ring._connection.pump
        thread = threading.Thread(target=expect_the_end, args=(ring,))
        thread.start()
        eventually(lambda: pump.sleeper == thread.ident)
        work = ring.all_reduce_async(np.ones(2))
        for delay in instants(600, 6e-4):
            with contextlib.suppress(ringd.DeadlineExceeded):
                hits += interrupted(lambda: work.wait(0.02), delay)
        assert not pump.waiters
        ring.close()
        thread.join(120)
    assert hits >= LEAST_HITS


def expect_the_end(ring):
    """Make a call that the ring's end ends."""
    with pytest.raises(ringd.RingError, match="closed before"):
        ring.all_reduce(np.ones(2), timeout=100)


def test_a_call_in_the_midst_of_ringd_is_refused(ring):
    """By an error of its own, for those who catch it: the ring is as it was."""
    for call in (
        lambda: ring.all_reduce(np.ones(2)),
        lambda: ring.empty(5000),
        ring.wait_ready,
        ring.barrier,
    ):
        with pytest.raises(ringd.CalledFromHandler, match="set a flag there"):
            ring._connection.pump.run(call)
    usable(ring, np.ones(2))


def test_what_insists_is_done_though_two_interrupts_come():
    """The second one strikes wherever the first is dealt with."""
    pump = Pump(lambda: None, lambda: True, lambda _channel: None, lambda: None)
    undone, done, first = 0, [], []

    def second(*_):
        if not done:
            raise KeyboardInterrupt

    def step():
        if first:
            signal.setitimer(signal.ITIMER_REAL, first.pop())
            raise KeyboardInterrupt
        sum(range(300))
        done.append(1)

    signal.signal(signal.SIGALRM, second)
    for number in range(10_000):
        first.append(1e-6 + number % 400 * 1e-7)
        done.clear()
        try:
            pump.insist(step)
        except KeyboardInterrupt:
            undone += 1
            done.append(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert undone == 0


@pytest.mark.parametrize("inside", [False, True])
def test_the_input_of_a_dropped_handle_is_private(tmp_path, inside):
    """Also if the garbage collector finds the handle while its thread is in the midst of ringd."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        x = ring.empty(5000, np.float64)
        x[:] = 7
        cycle = [ring.all_reduce_async(x, name="7")]
        cycle.append(cycle)
        eventually(lambda: daemon.handler.submitted)
        del cycle
        if inside:
            ring._connection.pump.run(gc.collect)
        else:
            gc.collect()
        x[:] = -1.0
        assert daemon.run(lambda: complete_held(daemon.handler)) == []


def test_the_keeper_leaves_inputs_where_an_interrupt_kept_the_caller_from_it(tmp_path):
    """Word of it is left, and the program need not call again."""
    with fake(tmp_path, hold=True) as (_, ring):
        x = ring.empty(5000, np.float64)
        work = ring.all_reduce_async(x)
        connection = ring._connection
        insist = connection.pump.insist
        connection.pump.insist = lambda _step: interrupt()
        work._op.left = connection.inputs_left = True
        with pytest.raises(KeyboardInterrupt):
            connection.leave_input()
        connection.pump.insist = insist
        eventually(lambda: not work._op.hold)
        assert connection.find(x) is None


def test_thousands_of_real_interrupts(tmp_path):
    """SIGINT by a timer, thousands of times, while two threads make calls."""
    with fake(tmp_path) as (_, ring):
        stop = threading.Event()
        wrong = []

        def other():
            while not stop.is_set():
                if not np.array_equal(ring.all_reduce(np.ones(3), timeout=30.0), np.full(3, 2.0)):
                    wrong.append("a value")

        thread = threading.Thread(target=other)
        thread.start()
        hits = 0

        def raise_it(_signum, _frame):
            nonlocal hits
            hits += 1
            raise KeyboardInterrupt

        signal.signal(signal.SIGALRM, raise_it)
        end = time.monotonic() + 20
        try:
            while hits < 2000 and time.monotonic() < end:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.random() * 2e-3 + 1e-5)
                    before = hits
                    while hits == before:  # Python may have swallowed it in a finaliser
                        ring.all_reduce(np.ones(2), timeout=30.0)
                except KeyboardInterrupt:
                    continue
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            stop.set()
            thread.join(120)
        assert not thread.is_alive()
        assert wrong == []
        assert hits >= 500
        usable(ring, np.ones(2))
