"""The client's own deadline: it ends a call while the daemon is away or stopped."""

import signal

import numpy as np
import pytest
from clientkit import LARGE, SMALL, fake, session_of, tell
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.client import stay as stay_module
from ringd.wire.border.messages import Failed, RingState


def test_deadline_ends_a_call_without_a_daemon(daemons, monkeypatch):
    """With the daemon away, a deadline still ends the call, and says so."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    daemons.start()
    with ringd.connect(daemons.path, timeout=10) as ring:
        daemons.kill()
        with pytest.raises(ringd.DeadlineExceeded, match=r"its deadline passed.*daemon is away"):
            ring.all_reduce(SMALL, timeout=0.05)
        work = ring.all_reduce_async(SMALL, timeout=0.05)
        eventually(work.done)
        with pytest.raises(ringd.DeadlineExceeded):
            work.wait()
        daemons.start()
        np.testing.assert_array_equal(ring.all_reduce(SMALL, timeout=10), 2 * SMALL)


def test_breaks_that_may_have_cost_the_time_are_told(tmp_path):
    """Those since the call, with the last one's reason; once."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        daemon.broadcast(RingState("forming", 8, "before"))
        eventually(lambda: ring.generation == 8)

        def end(text):
            seq = session_of(ring).next_seq
            work = ring.all_reduce_async(SMALL, timeout=60.0)
            for generation, reason in ((9, "one"), (10, "two")):
                if text != "nothing":
                    daemon.broadcast(RingState("forming", generation, reason))
            tell(daemon, lambda join_id: Failed(join_id, seq, seq + 1, "deadline_exceeded", text))
            with pytest.raises(ringd.DeadlineExceeded) as error:
                work.wait(30)
            return str(error.value)

        assert end("nothing") == "nothing"
        assert end("late") == "late; since the call the ring broke 2 times, at last: two"
        assert end("not up: two") == "not up: two"


def test_a_ring_that_broke_is_not_the_daemons_fault(tmp_path, monkeypatch):
    """Where the ring broke, the error says that as well: it may be why the daemon knows nothing."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    with fake(tmp_path, hold=True) as (daemon, ring):
        for news in (RingState("forming", 8, "link to n1 lost"), RingState("ready", 9)):
            daemon.broadcast(news)
        eventually(lambda: ring.generation == 9)
        with pytest.raises(ringd.DeadlineExceeded, match=r"the ring broke: link to n1 lost \(if"):
            ring.all_reduce(LARGE, timeout=0.05)


def test_deadline_that_passed_here_is_told_to_the_next_daemon(tmp_path, monkeypatch):
    """A call that ended here with an error is offered again with that outcome, without input."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
    with pytest.raises(ringd.DeadlineExceeded):
        ring.all_reduce(LARGE, timeout=0.05)
    with FakeDaemon(tmp_path / "s", hold=True) as second:
        eventually(lambda: second.handler.submitted)
        message = second.handler.submitted[0].message
        assert (message.outcome, message.source, message.target) == (
            "deadline_exceeded",
            None,
            None,
        )
        assert "its deadline passed" in message.message
        ring.close()


def test_stopped_daemon_does_not_hold_its_clients(daemons, monkeypatch):
    """A deadline ends a call also while the daemon is stopped; it goes on where it was."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    process = daemons.start()
    with ringd.connect(daemons.path, timeout=10) as ring:
        ring.all_reduce(LARGE)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ringd.DeadlineExceeded, match="does not answer"):
            ring.all_reduce(LARGE, timeout=0.05)
        works = [ring.all_reduce_async(LARGE + i) for i in range(5)]
        process.send_signal(signal.SIGCONT)
        for i, work in enumerate(works):
            np.testing.assert_array_equal(work.wait(30), 2 * (LARGE + i))


def test_daemons_default_deadline_is_kept_here_too(daemons, monkeypatch):
    """Never a hang: a call without a timeout ends also when the daemon is away, or stopped."""
    monkeypatch.setattr(stay_module, "GRACE", 0.01)
    process = daemons.start("--timeout", "0.1")
    with ringd.connect(daemons.path, timeout=10) as ring:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ringd.DeadlineExceeded, match=r"does not answer.*is it stopped\?"):
            ring.all_reduce(SMALL)
        daemons.kill()
        with pytest.raises(ringd.DeadlineExceeded, match=r"is away \(.*s: "):
            ring.all_reduce(SMALL)


def test_grace_grows_with_the_daemons_own(tmp_path):
    """The daemon may be as late as it says, and some more, before the client gives up."""
    with fake(tmp_path, hold=True, lost_after=100.0) as (_, ring):
        ring.all_reduce_async(SMALL, timeout=50)
        (op,) = session_of(ring).ops.values()
        assert op.give_up - op.timeout == pytest.approx(100 + stay_module.GRACE)


def test_a_daemon_is_told_the_timeout_that_was_asked_for(tmp_path):
    """Beside what is left of it, which gets less on the way and from daemon to daemon."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        ring.all_reduce_async(SMALL, timeout=99.5)
        ring.all_reduce_async(SMALL)
        eventually(lambda: len(first.handler.submitted) == 2)
        told = [call.message for call in first.handler.submitted]
    with FakeDaemon(tmp_path / "s", hold=True) as second:
        eventually(lambda: len(second.handler.submitted) == 2)
        told += [call.message for call in second.handler.submitted]
        assert [message.asked for message in told] == [99.5, None] * 2
        assert 99.5 > told[0].timeout > told[2].timeout > 0
        ring.close()
