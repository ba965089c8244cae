"""The loop: order, timers, ways in from outside, and doubt in oneself."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading

import pytest
from netkit import open_fds, run_until

from ringd import loop as loops
from ringd.loop import EVENT_READ, EVENT_WRITE, Loop


class Clock:
    """A clock that is moved by hand, in place of the loop's."""

    def __init__(self, loop):
        self.time = 1000.0
        loop.now = lambda: self.time


def turn(loop):
    """Let *loop* go round once without sleeping."""
    loop.call_soon(loop.stop)
    loop.run()


def test_timers_fire_in_order(loop):
    """Timers fire by due time, and by order of creation when that is equal."""
    clock = Clock(loop)
    fired = []
    delays = [0.3, 0.1, 0.2, 0.1]
    for number, delay in enumerate(delays):
        loop.call_later(delay, lambda number=number: fired.append(number))
    turn(loop)
    assert fired == []
    clock.time += 0.25
    turn(loop)
    assert fired == [1, 3, 2]
    clock.time += 0.25
    turn(loop)
    assert fired == [1, 3, 2, 0]


def test_cancelled_timers(loop):
    """A cancelled timer never fires, also when cancelled twice or by one due with it."""
    clock = Clock(loop)
    fired = []
    timers = []
    timers.append(loop.call_later(0.1, lambda: (fired.append(0), timers[1].cancel())))
    timers.append(loop.call_later(0.1, lambda: fired.append(1)))
    timers.append(loop.call_later(0.1, lambda: fired.append(2)))
    timers[2].cancel()
    timers[2].cancel()
    clock.time += 0.2
    turn(loop)
    timers[0].cancel()
    turn(loop)
    assert fired == [0]


def test_cancelled_timers_do_not_pile_up(loop):
    """A deadline for every call, cancelled when the call ends, takes no memory afterwards."""
    keep = loop.call_later(3600, loop.stop)
    for _ in range(10_000):
        loop.call_later(1800, loop.stop).cancel()
    assert len(loop._timers) < 200
    assert keep.callback is not None


def test_random_timers(loop):
    """Whatever is created and cancelled, exactly the others fire, by due time."""
    clock = Clock(loop)
    rng = random.Random(3)
    fired, expected, live = [], [], []
    for number in range(2000):
        delay = rng.random()
        timer = loop.call_later(delay, lambda number=number: fired.append(number))
        live.append((timer.when, number, timer))
        if rng.random() < 0.7:
            live.pop(rng.randrange(len(live)))[2].cancel()
    expected = [number for _, number, _ in sorted(live, key=lambda entry: entry[:2])]
    clock.time += 1
    turn(loop)
    assert fired == expected
    assert loop._timers == []


def test_zero_delay_does_not_hold_the_loop(loop):
    """A timer that renews itself without delay lets everything else run."""
    count = []

    def again():
        count.append(1)
        loop.call_later(0, again)

    again()
    run_until(loop, lambda: len(count) > 50)


def test_call_soon_waits_for_the_next_round(loop):
    """What call_soon callbacks queue runs after the next look at the sockets."""
    order = []
    one, other = socket.socketpair()
    with one, other:
        other.send(b"x")

        def readable(_events):
            order.append("socket")
            loop.remove(one)

        loop.add(one, EVENT_READ, readable)
        loop.call_soon(lambda: (order.append("first"), loop.call_soon(lambda: order.append("2nd"))))
        run_until(loop, lambda: len(order) == 3)
    assert order == ["first", "socket", "2nd"]


def test_no_event_after_removal(loop):
    """A socket that a callback removed gets no event, not even one found together with it."""
    pairs = [socket.socketpair() for _ in range(2)]
    calls = []

    def ready(number, _events):
        calls.append(number)
        for one, _ in pairs:
            loop.remove(one)

    for number, (one, other) in enumerate(pairs):
        other.send(b"x")
        loop.add(one, EVENT_READ, lambda events, number=number: ready(number, events))
    run_until(loop, lambda: calls)
    turn(loop)
    assert len(calls) == 1
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_events_and_modify(loop):
    """A callback is told what its file is ready for, and only what it asked for."""
    one, other = socket.socketpair()
    seen = []
    with one, other:
        other.send(b"x")
        loop.add(one, EVENT_READ | EVENT_WRITE, seen.append)
        turn(loop)
        loop.modify(one, EVENT_WRITE)
        turn(loop)
        loop.remove(one)
    assert set(seen[:1]) == {EVENT_READ | EVENT_WRITE}
    assert seen[-1] == EVENT_WRITE


def test_what_takes_long_comes_last(loop):
    """Of all that is ready at one look, whatever its place there."""
    heard = []
    with contextlib.ExitStack() as stack:
        for name, bulky in [("a", True), ("b", False), ("c", True), ("d", False)]:
            near, far = map(stack.enter_context, socket.socketpair())
            loop.add(near, EVENT_READ, lambda _events, name=name: heard.append(name), bulky=bulky)
            stack.callback(loop.remove, near)
            far.send(b"x")
        turn(loop)
    assert sorted(heard[:2]) == ["b", "d"]
    assert sorted(heard[2:]) == ["a", "c"]


def test_what_is_queued_keeps_the_loop_awake(loop):
    """While callbacks queue more the loop does not sleep; also those that a file's event queues."""
    work = list(range(5))

    def go_on():
        if work:
            work.pop()
            loop.call_soon(go_on)
        else:
            loop.stop()

    one, other = socket.socketpair()
    with one, other:
        loop.add(one, EVENT_READ, lambda _events: (one.recv(1), loop.call_soon(go_on)))
        other.send(b"x")
        loop.run()  # no timer, and no other event: sleeping would be for ever
        loop.remove(one)
    assert work == []


def test_call_threadsafe(loop):
    """Other threads wake a sleeping loop; nothing they queue is lost."""
    total = 4000
    seen = []

    def work():
        for _ in range(total // 4):
            loop.call_threadsafe(lambda: seen.append(1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    run_until(loop, lambda: len(seen) == total)
    for thread in threads:
        thread.join()


def test_call_threadsafe_after_close():
    """A thread that comes late does no harm."""
    loop = Loop()
    loop.close()
    loop.call_threadsafe(loop.stop)


def test_signals():
    """A signal's callback runs in the loop; closing gives the signal back."""
    before = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    seen = []
    loop.on_signal(signal.SIGUSR1, lambda: (seen.append(1), loop.stop()))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == []
    loop.run()
    assert seen == [1]
    # While it sleeps without any timer, too: run() returns by the signal alone.
    thread = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    thread.start()
    loop.run()
    thread.join()
    assert seen == [1, 1]
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_an_exception_leaves_run(loop):
    """A bug in a callback is not hidden."""

    def bug():
        raise ZeroDivisionError

    loop.call_soon(bug)
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_pause_comes_before_timers(loop):
    """After the process was asleep, that is known before any timer fires."""
    clock = Clock(loop)
    order = []
    loop.on_pause(lambda gap: order.append(round(gap, 3)))
    loop.call_later(0.5, lambda: order.append("timer"))
    clock.time += 10
    turn(loop)
    assert order == [9.5, "timer"]


def test_no_pause_when_on_time(loop):
    """A timer that is a little late, or was cancelled long ago, is no pause."""
    clock = Clock(loop)
    order = []
    loop.on_pause(order.append)
    loop.call_later(0.1, loop.stop).cancel()
    loop.call_later(5, lambda: order.append("timer"))
    clock.time += 5 + loops.PAUSE_THRESHOLD / 2
    turn(loop)
    assert order == ["timer"]


def test_a_file_that_is_removed_for_a_pause_is_not_heard(loop):
    """Nor is the loop upset, which had found it ready before the pause was known."""
    clock = Clock(loop)
    ours, theirs = socket.socketpair()
    heard = []
    with ours, theirs:
        loop.add(ours, EVENT_READ, heard.append)
        loop.on_pause(lambda _gap: loop.remove(ours))
        loop.call_later(0.5, lambda: None)
        theirs.send(b"x")
        clock.time += 10
        turn(loop)
        assert ours.fileno() not in loop._watches
    assert heard == []


def test_forget_pause(loop):
    """Whoever is gone is not told any more."""
    clock = Clock(loop)
    seen = []
    loop.on_pause(seen.append)
    loop.forget_pause(seen.append)
    loop.call_later(0.1, lambda: None)
    clock.time += 100
    turn(loop)
    assert seen == []


def test_close_releases_descriptors():
    """A closed loop leaves nothing open."""
    before = open_fds()
    for _ in range(10):
        Loop().close()
    assert open_fds() == before
