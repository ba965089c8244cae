"""Interrupts, signal handlers and finalisers at every place of a call where Python lets them in.

Python runs signal handlers where a call returns, where a function begins, and at the end of each
loop. A profile function is called in just these places (but for the loops), so it can put an
interrupt into each of them in turn: what holds here holds by construction, not by luck.
"""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest
from clientkit import BOTH, INLINE_LIMIT, fake, pool_of, session_of
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.border.server import Limits

FAR = 100_000  # events; no call has as many
NOWHERE = 10**9


class At:
    """Call *act* at the given event of this thread, counted from 1, and *again* events later."""

    def __init__(self, event, act, again=NOWHERE):
        self.left = event
        self.act = act
        self.again = again
        self.acted = 0

    def __enter__(self):
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _event(self, _frame, event, _argument):
        if event in ("call", "return", "c_return"):
            self.left -= 1
            if self.left == 0:
                self.left, self.again = self.again, NOWHERE
                self.acted += 1
                sys.setprofile(None)  # not within the handler
                try:
                    self.act()
                finally:
                    if self.left < NOWHERE:
                        sys.setprofile(self._event)


def interrupt():
    """Do what Python does on Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture
def ring(tmp_path):
    """A ring of a fake daemon."""
    with fake(tmp_path) as (_, ring):
        yield ring


def interrupted(call, event, again=NOWHERE, caught=None):
    """Make *call*, interrupted at *event*; return whether it was, and append what was raised."""
    at = At(event, interrupt, again)
    try:
        with at:
            call()
    except KeyboardInterrupt:
        if caught is not None:
            caught.append(event)
    return at.acted > 0


def usable(ring, x):
    """Make sure that *ring* computes as ever."""
    assert np.array_equal(ring.all_reduce(x, timeout=10.0), 2 * x)


@BOTH
def test_an_interrupt_anywhere_leaves_the_ring_usable(ring, x):
    """Wherever a call is interrupted, it is made once or not at all, and the next one is right."""
    for event in range(1, FAR):
        before = session_of(ring).next_seq
        hit = interrupted(lambda: ring.all_reduce(x), event)
        assert session_of(ring).next_seq - before in (0, 1)
        usable(ring, x)
        if not hit:
            break
    assert event > 50
    eventually(lambda: session_of(ring).acked == session_of(ring).next_seq)


@BOTH
def test_a_second_interrupt_while_cleaning_up_leaves_the_ring_usable(ring, x):
    """One interrupt may follow another into whatever the first has set off."""
    chance = random.Random(3)
    for _ in range(400):
        interrupted(lambda: ring.all_reduce(x), chance.randrange(1, 250), chance.randrange(1, 25))
        usable(ring, x)


def test_interrupts_of_many_calls_in_flight_lose_none(tmp_path):
    """Handed over beyond the window and interrupted at random: each call ends with its value."""
    chance = random.Random(4)
    with fake(tmp_path, limits=Limits(inline_limit=INLINE_LIMIT, window=8)) as (_, ring):
        for _ in range(150):
            works = []

            def burst(works=works):
                for i in range(30):
                    works.append(ring.all_reduce_async(np.full(4, float(i))))
                for work in works:
                    work.wait()

            interrupted(burst, chance.randrange(1, 4000), chance.randrange(1, 100))
            for i, work in enumerate(works):
                assert np.array_equal(work.wait(10.0), np.full(4, 2.0 * i))
            usable(ring, np.ones(3))


@BOTH
def test_interrupts_leave_no_memory_behind(ring, x):
    """What an interrupted call had taken is used again."""
    chance = random.Random(5)
    for _ in range(600):
        interrupted(lambda: ring.all_reduce(x), chance.randrange(1, 250))
    usable(ring, x)
    gc.collect()
    assert pool_of(ring).lent == 0 or x.nbytes <= INLINE_LIMIT or pool_of(ring).lent <= x.nbytes
    assert pool_of(ring).size <= 32 * (x.nbytes + (1 << 20))


@pytest.mark.parametrize("where", ["submitting", "waiting"])
def test_a_lent_input_is_private_after_an_interrupt(tmp_path, where):
    """Whoever interrupts a call of a ring.empty array may write to it: the daemon keeps its own."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        for event in range(1, FAR):
            x = ring.empty(5000, np.float64)
            x[:] = event
            call = partial(ring.all_reduce_async, x, name=str(event))
            if where == "waiting":
                call = partial(call().wait, 0.001)
            # Python swallows an interrupt of a finaliser: nobody hears of that one.
            hit, caught = False, []
            with contextlib.suppress(ringd.DeadlineExceeded):
                hit = interrupted(call, event, caught=caught)
            del call  # with the handle: nobody can wait again
            if not hit:
                break
            if caught:
                x[:] = -1.0
            assert daemon.run(lambda: complete_held(daemon.handler)) == [], event
        assert event > 50


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
    """What a signal handler may be expected to do."""
    assert (ring.rank, ring.size, ring.node) == (0, 2, "fake")
    assert ring.state == "ready"
    assert ring.generation == 7
    repr(ring), repr(work)
    with contextlib.suppress(ringd.RingError):
        work.done()
    for call in (
        lambda: ring.empty(5000),
        lambda: ring.barrier(timeout=5.0),
        lambda: ring.all_reduce(np.ones(4), timeout=5.0),
        lambda: ring.all_reduce(np.ones(5000), timeout=5.0),
        lambda: work.wait(5.0),
    ):
        with contextlib.suppress(ringd.RingError):
            call()


@BOTH
def test_a_handler_anywhere_may_use_the_ring(ring, x):
    """A signal handler in the midst of a call ends, and so does the call, with the right value."""
    work = ring.all_reduce_async(np.ones(4))
    for event in range(1, FAR):
        at = At(event, lambda: touch_everything(ring, work))
        with at:
            total = ring.all_reduce(x, timeout=10.0)
        assert np.array_equal(total, 2 * x)
        if not at.acted:
            break
    assert event > 50


@pytest.mark.parametrize("then_exit", [False, True])
def test_a_handler_anywhere_may_close_the_ring(tmp_path, then_exit):
    """close() in a handler returns at once; the call beneath ends, with its value or an error."""

    def handler():
        ring.close()
        if then_exit:
            sys.exit(0)

    with FakeDaemon(tmp_path / "s", limits=Limits(inline_limit=INLINE_LIMIT)) as daemon:
        for event in range(1, FAR, 3):
            eventually(lambda: not daemon.handler.groups)
            ring = ringd.connect(daemon.path, timeout=10)
            at = At(event, handler)
            with contextlib.suppress(ringd.RingError, SystemExit), at:
                ring.all_reduce(np.ones(4), timeout=10.0)
            ring.close()
            if not at.acted:
                break
        assert event > 50


def test_an_interrupt_anywhere_in_close_can_be_followed_by_another_close(tmp_path):
    """A second close() finishes what an interrupt has left of the first."""
    with FakeDaemon(tmp_path / "s") as daemon:
        for event in range(1, FAR, 2):
            ring = ringd.connect(daemon.path, timeout=10)
            hit = interrupted(ring.close, event)
            ring.close()
            eventually(lambda: not daemon.handler.groups)
            if not hit:
                break
        assert event > 50


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
                    eventually(lambda: ring._connection._pump.sleeping),
                    signal.pthread_kill(main, signal.SIGUSR1),
                )
            )
            poker.start()
            assert np.array_equal(ring.all_reduce(np.ones(2), timeout=10.0), [2.0, 2.0])
            poker.join()
        finally:
            signal.signal(signal.SIGUSR1, old)
        assert np.array_equal(seen[0], np.full(3, 2.0))


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

        old = signal.signal(signal.SIGALRM, raise_it)
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
            signal.signal(signal.SIGALRM, old)
            stop.set()
            thread.join(20)
        assert not thread.is_alive()
        assert wrong == []
        assert hits >= 500
        usable(ring, np.ones(2))
