"""A daemon that is there and says nothing: what programs are told, and what becomes of memory."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clientkit import pool_of, session_of
from fake_daemon import FakeDaemon, eventually, mapped

import ringd
from ringd.border.lifeline import Lifeline
from ringd.client import keeper as keeper_module
from ringd.client import pool as pool_module
from ringd.client import stay as stay_module
from ringd.client.pool import Pool
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border

FAKE = Path(__file__).with_name("fake_daemon.py")
COUNT = 50_000
FOUND = np.ones(COUNT, np.float32)


@pytest.fixture
def hasty(monkeypatch):
    """The client gives up at once when a deadline has passed."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)


@pytest.fixture
def silent(tmp_path):
    """A daemon that completes nothing by itself."""
    with FakeDaemon(tmp_path / "s", hold=True) as daemon:
        yield daemon


@pytest.fixture
def process(tmp_path):
    """A daemon in a process of its own, that can be stopped; it answers at once."""
    daemon = subprocess.Popen(
        [sys.executable, str(FAKE), str(tmp_path / "s"), "--lost-after", "1.5"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert daemon.stdout.readline() == "listening\n"
    daemon.path = str(tmp_path / "s")
    yield daemon
    daemon.send_signal(signal.SIGCONT)
    daemon.terminate()
    daemon.wait(60)
    daemon.stdout.close()


def lend(ring, daemon, *, timeout=None):
    """Make a call that lends its input, of ones; return that, the call, and the daemon's view."""
    buffer = ring.empty(COUNT, np.float32)
    buffer[:] = 1
    work = ring.all_reduce_async(buffer, timeout=timeout)
    eventually(lambda: daemon.handler.submitted)
    (call,) = daemon.handler.submitted
    assert call.message.hold
    view = daemon.run(lambda: call.client.view(call.message.source, writable=False))
    return buffer, work, np.frombuffer(view, np.float32)


def answer(daemon, **how):
    """Complete the call that was handed over first."""
    call = daemon.handler.submitted[0]
    message = call.message

    def send():
        daemon.handler.compute(call)
        call.client.send(border.Completed(message.join_id, message.seq, 0, 7, **how))

    daemon.run(send)


def check_left(buffer, seen):
    """The array is the user's alone, and the daemon sees what was lent."""
    np.testing.assert_array_equal(buffer, FOUND)
    buffer[:] = 7
    np.testing.assert_array_equal(seen, FOUND)
    np.testing.assert_array_equal(buffer, 7 * FOUND)


@pytest.mark.usefixtures("hasty")
def test_a_deadline_gives_a_lent_array_back_from_a_silent_daemon(silent):
    """The call ends; what the daemon may yet read stays, whatever the user writes."""
    with ringd.connect(silent.path, timeout=10) as ring:
        buffer, work, seen = lend(ring, silent, timeout=0.01)
        with pytest.raises(ringd.DeadlineExceeded, match="does not answer"):
            work.wait(30)
        check_left(buffer, seen)


def test_an_array_that_was_left_to_the_daemon_can_be_used_again(silent):
    """It is an ordinary one from then on: the next call sends what it holds now."""
    with ringd.connect(silent.path, timeout=10) as ring:
        buffer, work, seen = lend(ring, silent)
        answer(silent, keep=True)
        np.testing.assert_array_equal(work.wait(30), 2 * FOUND)
        check_left(buffer, seen)
        silent.run(lambda: setattr(silent.handler, "hold", False))
        np.testing.assert_array_equal(ring.all_reduce(buffer, timeout=10), 14 * FOUND)
        np.testing.assert_array_equal(seen, FOUND)


def test_an_input_that_was_left_is_offered_to_the_next_daemon(tmp_path):
    """The others can be served by that one too, until the op is released."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        buffer, work, seen = lend(ring, first)
        answer(first, keep=True)
        work.wait(30)
        check_left(buffer, seen)
    with FakeDaemon(tmp_path / "s", hold=True) as second:
        eventually(lambda: second.handler.submitted)
        (call,) = second.handler.submitted
        assert (call.message.outcome, call.message.hold) == ("ok", False)
        view = second.run(lambda: call.client.view(call.message.source, writable=False))
        np.testing.assert_array_equal(np.frombuffer(view, np.float32), FOUND)
        ring.close()


def test_memory_that_was_left_is_given_back_in_the_end(silent):
    """When the op is released and the user has dropped the array, nobody maps it any more."""
    gc.collect()
    before, numbers = mapped(), set()
    with ringd.connect(silent.path, timeout=10) as ring:
        for seq in range(3):
            buffer, work, seen = lend(ring, silent)
            answer(silent, keep=True)
            work.wait(30)
            (call,) = silent.handler.submitted
            numbers.add(call.message.source.segment)
            released = border.Released(call.message.join_id, seq + 1)
            silent.run(lambda client=call.client, word=released: client.send(word))
            eventually(lambda: (ring.state, session_of(ring).ops)[1] == {})
            silent.handler.submitted.clear()
            del buffer, work, seen, call
            gc.collect()
        assert len(numbers) == 3
        silent.run(lambda: setattr(silent.handler, "hold", False))
        ring.all_reduce(np.ones(COUNT))  # says also what is dropped
        ((client, _),) = silent.handler.joins.items()
        segments = client._lifeline.segments
        assert not any(silent.run(lambda number=number: number in segments) for number in numbers)
        assert mapped() <= before + 2 * len(segments)  # once on either side


def test_closing_leaves_what_was_lent_as_it_was(silent, monkeypatch):
    """Also where the daemon is too busy to say that it has heard of it."""
    monkeypatch.setattr(stay_module, "_DETACH_TIMEOUT", 0.01)
    ring = ringd.connect(silent.path, timeout=10)
    buffer, work, seen = lend(ring, silent)
    ring.close()
    with pytest.raises(ringd.RingError, match="closed"):
        work.wait(30)
    check_left(buffer, seen)


def test_a_ring_that_is_forgotten_leaves_what_it_had_lent(silent):
    """Who drops its ring in the midst of a call may write to the array at once."""
    ring = ringd.connect(silent.path, timeout=10)
    buffer, work, seen = lend(ring, silent)
    del ring, work
    eventually(lambda: silent.handler.gone)
    check_left(buffer, seen)


def test_the_end_may_come_while_an_input_is_being_left(silent, monkeypatch):
    """That of the process, or of a forgotten ring: it waits for no lock that a thread may hold."""
    ring = ringd.connect(silent.path, timeout=10)
    buffer, _, seen = lend(ring, silent)
    detach = pool_module.detach

    def end(*where):
        monkeypatch.setattr(pool_module, "detach", detach)
        ring._connection.abandon()
        detach(*where)

    monkeypatch.setattr(pool_module, "detach", end)
    (op,) = session_of(ring).ops.values()
    ring._stay.group.leave_input(op)
    eventually(lambda: silent.handler.gone)
    check_left(buffer, seen)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("away", [False, True], ids=["silent", "away"])
def test_an_interrupted_call_leaves_what_it_had_lent(tmp_path, away):
    """Who tries again writes to the array first; the call goes on with what it held."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        buffer = ring.empty(COUNT, np.float32)
        buffer[:] = 1
        if away:
            first.stop()
        pump = ring._connection.pump

        def interrupt():
            eventually(lambda: session_of(ring).ops and (pump.waiters if away else pump.sleeper))
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            ring.all_reduce(buffer, timeout=30)
        thread.join()
        buffer[:] = 7
    with FakeDaemon(tmp_path / "s", hold=True) as second:
        eventually(lambda: second.handler.submitted)
        (call,) = second.handler.submitted
        view = second.run(lambda: call.client.view(call.message.source, writable=False))
        np.testing.assert_array_equal(np.frombuffer(view, np.float32), FOUND)
        ring.close()


@pytest.mark.usefixtures("hasty")
def test_without_memory_to_leave_the_input_a_call_waits(silent, monkeypatch):
    """A wrong sum for the others would be worse; it ends when the daemon lets go of the input."""

    def refuse(_pool, _block):
        raise OSError(errno.ENOMEM, "no")

    monkeypatch.setattr(Pool, "detach", refuse)
    with ringd.connect(silent.path, timeout=10) as ring:
        _, work, _ = lend(ring, silent, timeout=0.01)
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.2)
        answer(silent, keep=True)
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.2)
        (call,) = silent.handler.submitted
        silent.run(lambda: call.client.send(border.Released(call.message.join_id, 1)))
        np.testing.assert_array_equal(work.wait(30), 2 * FOUND)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("lent", [True, False])
def test_a_result_that_stands_counts_also_if_nobody_says_so(silent, lent):
    """The daemon was stopped between finishing a call and telling of it."""
    with ringd.connect(silent.path, timeout=10) as ring:
        x = ring.empty(COUNT, np.float32) if lent else np.empty(COUNT, np.float32)
        x[:] = 1
        work = ring.all_reduce_async(x, timeout=0.5)
        eventually(lambda: silent.handler.submitted)
        silent.run(lambda: silent.handler.compute(silent.handler.submitted[0]))
        np.testing.assert_array_equal(work.wait(30), 2 * FOUND)


# --- on_loss="fail" -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inline", "segment", "lent"])
def test_who_wants_to_know_at_once_is_told_of_a_stopped_daemon(process, kind):
    """While it is still stopped: an open call, and each one made after that; then all is well."""
    with ringd.connect(process.path, timeout=10, on_loss="fail") as ring:
        x = ring.empty(COUNT, np.float32) if kind == "lent" else np.empty(COUNT, np.float32)
        x = x[:10] if kind == "inline" else x
        x[:] = 1
        ring.all_reduce(x)
        process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(ringd.PeerLost, match=r"has not answered for 1.5 s \(is it stop"):
                ring.all_reduce(x)
            x += 1
        process.send_signal(signal.SIGCONT)
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * x)
        assert x[0] == 4


def test_a_program_that_was_stopped_itself_accuses_nobody(process):
    """It hears first what its daemon has said meanwhile."""
    text = f"""
import sys, numpy, ringd
ring = ringd.connect({process.path!r}, on_loss="fail")
for line in sys.stdin:
    print(ring.all_reduce(numpy.ones(2))[0], flush=True)
"""
    command = [sys.executable, "-c", text]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        for _ in range(2):
            program.stdin.write("go\n")
            program.stdin.flush()
            assert program.stdout.readline() == "2.0\n"
            program.send_signal(signal.SIGSTOP)
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(1.8)  # how long it sleeps; longer than a daemon may
            program.send_signal(signal.SIGCONT)
        program.stdin.close()
        assert program.wait(30) == 0


@pytest.mark.parametrize("on_loss", ["wait", "fail"])
def test_only_who_wants_to_know_at_once_asks_for_signs_of_life(tmp_path, monkeypatch, on_loss):
    """Four in the time in which losses are noticed; all others sleep undisturbed."""
    beats = []
    obey = Lifeline._obey

    def noting(self, operation, segment, size):
        beats.append(operation == lifeline.BEAT)
        obey(self, operation, segment, size)

    monkeypatch.setattr(Lifeline, "_obey", noting)
    asleep = []
    with (
        FakeDaemon(tmp_path / "s", lost_after=0.1) as daemon,
        ringd.connect(daemon.path, timeout=10, on_loss=on_loss) as ring,
    ):
        channel = ring._connection.pump.channel
        wait_end = channel.wait_end
        monkeypatch.setattr(channel, "wait_end", lambda s: (asleep.append(s), wait_end(s))[1])
        if on_loss == "fail":
            eventually(lambda: sum(beats) > 5)
            assert asleep[-1] <= 0.1 / 4
        else:
            ring.all_reduce(np.ones(3))
            assert sum(beats) == 0
            assert all(seconds > 1 for seconds in asleep)


def test_a_stopped_daemon_is_not_asked_for_ever(process):
    """Unread beats do not fill its lifeline, also if it is stopped for hours."""
    with ringd.connect(process.path, timeout=10, on_loss="fail") as ring:
        channel = ring._connection.pump.channel
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ringd.PeerLost):
            ring.all_reduce(FOUND)
        asked = channel.unanswered
        with pytest.raises(ringd.PeerLost):
            ring.all_reduce(FOUND)
        assert channel.unanswered == asked


@pytest.mark.parametrize("lent", [False, True])
def test_a_stopped_daemon_is_handed_nothing_more(process, lent):
    """What is passed to it stays allocated until it runs, and nothing would count it."""
    with ringd.connect(process.path, timeout=10, on_loss="fail") as ring:
        x = ring.empty(COUNT, np.float32) if lent else np.empty(COUNT, np.float32)
        x[:] = 1
        process.send_signal(signal.SIGSTOP)
        segments = []
        for _ in range(4):
            with pytest.raises(ringd.PeerLost):
                ring.all_reduce(x)
            segments.append(pool_of(ring)._next_number)
        assert segments[1:] == segments[1:2] * 3
        process.send_signal(signal.SIGCONT)
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * FOUND)


@pytest.mark.parametrize("x", [FOUND[:10], FOUND], ids=["inline", "segment"])
def test_a_daemon_that_stays_away_is_a_loss_for_each_call(daemons, x):
    """Also for those made while it is away, which else would wait for it; then all is well."""
    daemons.start("--lost-after", "1.5")
    with ringd.connect(daemons.path, timeout=10, on_loss="fail") as ring:
        ring.all_reduce(x)
        daemons.kill()
        for _ in range(3):
            with pytest.raises(ringd.PeerLost, match="this machine's daemon"):
                ring.all_reduce(x, timeout=30)
        daemons.start("--lost-after", "1.5")
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * x)


@pytest.mark.parametrize("last_word", [0.0, 0.3, 0.74])
def test_a_daemon_is_missed_when_it_was_silent_for_as_long_as_members_may_be(
    monkeypatch, last_word
):
    """Not sooner, or short pauses would count for its programs and for nobody else."""
    now, missed = [0.0], []
    channel = SimpleNamespace(unanswered=0, heard_at=0.0)
    channel.beat = lambda: setattr(channel, "unanswered", channel.unanswered + 1)
    daemon = SimpleNamespace(info=SimpleNamespace(lost_after=3.0))
    groups = SimpleNamespace(
        fail_on_loss=True,
        report_silence=lambda *_: missed.append(now[0] - channel.heard_at),
    )
    monkeypatch.setattr(keeper_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    keeper = keeper_module.Keeper([], daemon, groups, SimpleNamespace(tell=lambda: None))
    due = 0.0
    while not missed:
        now[0] = due
        due += keeper._beat(channel)
        if channel.heard_at < last_word <= due:  # a message comes, also between two beats
            channel.heard_at, channel.unanswered = last_word, 0
    assert missed == [pytest.approx(3.0, abs=0.03)]
