"""The daemon dies, returns, loses the group or stops to answer: what the program sees of it."""

import contextlib
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zmq
from fake_daemon import FakeDaemon, eventually, open_fds

import ringd
from ringd.border.server import Limits
from ringd.client import channel as channel_module
from ringd.client import connection as connection_module
from ringd.client.pump import Pump
from ringd.wire import border, lifeline

FAKE = Path(__file__).with_name("fake_daemon.py")
SMALL = np.arange(10.0)
LARGE = np.arange(50_000.0)
BOTH = pytest.mark.parametrize("x", [SMALL, LARGE], ids=["inline", "segment"])


class Daemons:
    """Daemon processes on one socket, one after the other."""

    def __init__(self, path):
        self.path = str(path)
        self.processes = []

    def start(self, *options):
        """Start one and wait until it listens."""
        process = subprocess.Popen(
            [sys.executable, str(FAKE), self.path, *options], stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        assert process.stdout.readline() == "listening\n"
        return process

    def kill(self):
        """Kill the last one."""
        self.processes[-1].kill()
        self.processes[-1].wait()

    def end(self):
        """Leave none behind."""
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def daemons(tmp_path):
    """A place for daemons."""
    daemons = Daemons(tmp_path / "s")
    yield daemons
    daemons.end()


def session_of(ring):
    """Return the ring's current session."""
    return ring._connection._group.session


@contextlib.contextmanager
def fake(tmp_path, *, group="default", on_loss="wait", **options):
    """A daemon in a thread, and a ring of it."""
    options.setdefault("limits", Limits(inline_limit=1024))
    with (
        FakeDaemon(tmp_path / "s", **options) as daemon,
        ringd.connect(daemon.path, group, timeout=10, on_loss=on_loss) as ring,
    ):
        yield daemon, ring


def tell(daemon, make):
    """Send what *make* returns for the client's join id."""

    def send():
        ((client, join_id),) = daemon.handler.joins.items()
        client.send(make(join_id))

    daemon.run(send)


@BOTH
def test_killed_daemon_is_survived_by_a_waiting_call(daemons, x):
    """A call that waits when its daemon is killed returns right after the next one is there."""
    daemons.start("--hold")
    with ringd.connect(daemons.path, timeout=10) as ring:
        results = []
        thread = threading.Thread(target=lambda: results.append(ring.all_reduce(x)))
        thread.start()
        eventually(lambda: session_of(ring).ops)
        for _ in range(2):
            daemons.kill()
            daemons.start("--hold")
        daemons.kill()
        daemons.start()
        thread.join(30)
        np.testing.assert_array_equal(results[0], 2 * x)


@BOTH
def test_calls_made_while_the_daemon_is_away_are_kept(daemons, x):
    """Submitting needs no daemon; the next one gets it all, in order."""
    daemons.start()
    with ringd.connect(daemons.path, timeout=10) as ring:
        ring.all_reduce(x)
        daemons.kill()
        works = [ring.all_reduce_async(x + i) for i in range(20)]
        assert not any(work.done() for work in works)
        daemons.start()
        for i, work in enumerate(works):
            np.testing.assert_array_equal(work.wait(30), 2 * (x + i))


def test_busy_program_hands_over_again_by_itself(tmp_path):
    """While the program computes, the next daemon is given what is unfinished."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: first.handler.submitted)
    with FakeDaemon(tmp_path / "s") as second:
        eventually(lambda: second.handler.submitted)  # nobody has called the ring since
        assert second.handler.attaches[0].join_id == first.handler.attaches[0].join_id
        np.testing.assert_array_equal(work.wait(30), 2 * LARGE)
        ring.close()


@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["inline", "segment"])
def test_finished_calls_are_offered_again_until_released(tmp_path, x):
    """A new daemon is told of everything not finished everywhere, with its outcome and input."""
    limits = Limits(inline_limit=1024)
    with FakeDaemon(tmp_path / "s", release=False, limits=limits) as first:
        ring = ringd.connect(first.path, timeout=10)
        for _ in range(3):
            ring.all_reduce(x)
        first.run(lambda: first.handler.__setattr__("hold", True))
        work = ring.all_reduce_async(x)
        tell(first, lambda join_id: border.Released(join_id, 1))
        assert not work.done()
        eventually(lambda: (work.done(), session_of(ring).released)[1] == 1)
    with FakeDaemon(tmp_path / "s", limits=limits) as second:
        np.testing.assert_array_equal(work.wait(30), 2 * x)
        attach = second.handler.attaches[0]
        assert (attach.next_seq, attach.released) == (4, 1)
        again = [call.message for call in second.handler.submitted]
        assert [(m.seq, m.outcome, m.acked) for m in again] == [
            (1, "ok", 3),
            (2, "ok", 3),
            (3, "", 3),
        ]
        inputs = [
            call.payload
            if call.message.source is None
            else call.client.view(call.message.source, writable=False)
            for call in second.handler.submitted
        ]
        assert [bytes(data) for data in inputs] == [x.tobytes()] * 3
        assert all(m.target is None for m in again[:2])
        ring.close()


def test_seal_speaks_for_a_daemon_that_died(daemons):
    """A result that was complete in memory is delivered although its daemon died first."""
    daemons.start("--seal-and-die", "--size", "5")
    with ringd.connect(daemons.path, timeout=10) as ring:
        work = ring.all_reduce_async(LARGE)
        daemons.processes[0].wait(30)
        daemons.start("--hold")  # which will never compute anything
        np.testing.assert_array_equal(work.wait(30), 5 * LARGE)


def test_seal_of_a_held_input_waits_for_the_word(tmp_path):
    """With the user's own array as input, a sealed result is told only when nobody needs it."""
    limits = Limits(inline_limit=1024)
    with FakeDaemon(tmp_path / "s", limits=limits) as first:
        first.handler.on_submit = first.handler.compute  # result and seal, but no word
        ring = ringd.connect(first.path, timeout=10)
        x = ring.empty(50_000, np.float64)
        x[:] = LARGE
        work = ring.all_reduce_async(x)
        eventually(lambda: first.handler.submitted)
    with FakeDaemon(tmp_path / "s", limits=limits, hold=True) as second:
        eventually(lambda: second.handler.submitted)
        (call,) = second.handler.submitted
        assert (call.message.outcome, call.message.hold, call.message.target) == ("ok", True, None)
        assert work.done() is False
        second.run(lambda: second.handler.complete(call))
        np.testing.assert_array_equal(work.wait(30), 2 * LARGE)
        ring.close()


def test_stale_seal_does_not_speak_for_a_later_call(daemons):
    """A block that was sealed for one call says nothing about the next one in it."""
    daemons.start("--die-after", "1")
    with ringd.connect(daemons.path, timeout=10) as ring:
        ring.all_reduce(LARGE)
        gc.collect()
        work = ring.all_reduce_async(LARGE + 1)  # in the same memory; kills the daemon
        daemons.processes[0].wait(30)
        daemons.start()
        np.testing.assert_array_equal(work.wait(30), 2 * (LARGE + 1))


def test_deadline_ends_a_call_without_a_daemon(daemons, monkeypatch):
    """With the daemon away, a deadline still ends the call, and says so."""
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
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


def test_deadline_that_passed_here_is_told_to_the_next_daemon(tmp_path, monkeypatch):
    """A call that ended here with an error is offered again with that outcome, without input."""
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
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
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
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


@pytest.mark.parametrize("end", ["deadline", "denied", "left behind"])
def test_memory_that_the_daemon_may_still_read_is_not_reused(tmp_path, monkeypatch, end):
    """A call that is over here may still be under way there: its input stays as it was."""
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
    inputs = []
    with fake(tmp_path, hold=True, release=False) as (daemon, ring):

        def on_submit(call):
            inputs.append(call.client.view(call.message.source, writable=False))

        daemon.handler.on_submit = on_submit
        work = ring.all_reduce_async(LARGE, timeout=0.05 if end == "deadline" else 10)
        eventually(lambda: inputs)
        if end == "denied":
            tell(daemon, lambda join_id: border.Denied(join_id, "refused", "no"))
        elif end == "left behind":
            daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
            tell(daemon, lambda join_id: border.Lost(join_id, 1, "group_lost", "died"))
            work.wait(30)
        eventually(work.done)
        del work
        works = []
        for _ in range(8):
            with contextlib.suppress(ringd.RingError):  # one to tell of the loss
                works.append(ring.all_reduce_async(LARGE + 1))
        eventually(lambda: len(inputs) == 1 + len(works))
        assert bytes(inputs[0]) == LARGE.tobytes()
        inputs.clear()


@pytest.mark.parametrize("end", ["denied", "daemon lost", "left behind"])
def test_results_that_others_may_still_need_keep_their_memory(tmp_path, end):
    """A call that succeeded, and is not released, may be served from its input for a while."""
    with fake(tmp_path, release=False, on_loss="fail") as (daemon, ring):
        ring.all_reduce(LARGE)
        (first,) = daemon.handler.submitted
        number = first.message.source.segment
        daemon.run(lambda: setattr(daemon.handler, "hold", True))
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: len(daemon.handler.submitted) == 2)
        if end == "denied":
            tell(daemon, lambda join_id: border.Denied(join_id, "refused", "no"))
        elif end == "daemon lost":
            ring._connection._pump.channel.hang_up()
        else:
            tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "died"))
        with pytest.raises(ringd.RingError):
            work.wait(30)
        assert number not in ring._connection._group.pool._segments


def test_call_given_up_while_the_daemon_is_away_keeps_its_memory(tmp_path, monkeypatch):
    """Also a daemon that was parted with may be at work in it: it is free when released."""
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
    with FakeDaemon(tmp_path / "s", hold=True, limits=Limits(inline_limit=1024)) as first:
        ring = ringd.connect(first.path, timeout=10)
        work = ring.all_reduce_async(LARGE, timeout=0.05)
    with pytest.raises(ringd.DeadlineExceeded):
        work.wait(30)
    (op,) = session_of(ring).ops.values()
    blocks = op.kept
    assert [block.segment.number for block in blocks] == [1, 1]
    pool = ring._connection._group.pool
    others = [pool.take(LARGE.nbytes) for _ in range(3)]
    assert all(
        (other.segment, other.offset) != (block.segment, block.offset)
        for other in others
        for block in blocks
    )
    with FakeDaemon(tmp_path / "s") as second:
        second.handler.on_submit = lambda call: call.client.send(
            border.Released(call.message.join_id, call.message.seq + 1)
        )
        eventually(lambda: (ring.state, op.kept)[1] == ())
        ring.close()


def test_lent_input_is_not_given_back_before_the_daemon_says_so(daemons, monkeypatch):
    """Past its deadline the daemon may still read the user's own array; its end is an answer."""
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
    daemons.start("--hold")
    with ringd.connect(daemons.path, timeout=10) as ring:
        x = ring.empty(100_000)
        x[:] = 1
        work = ring.all_reduce_async(x, timeout=0.01)
        with pytest.raises(ringd.DeadlineExceeded, match="it goes on"):
            work.wait(0.1)
        assert work.done() is False
        daemons.kill()
        with pytest.raises(ringd.DeadlineExceeded, match=r"its deadline passed.*is away"):
            work.wait(30)


def test_daemons_default_deadline_is_kept_here_too(daemons, monkeypatch):
    """Never a hang: a call without a timeout ends also when the daemon is away, or stopped."""
    monkeypatch.setattr(connection_module, "GRACE", 0.01)
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
        assert op.give_up - op.timeout == pytest.approx(100 + connection_module.GRACE)


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


def test_message_that_a_sender_finds_wakes_the_sleeper(tmp_path):
    """To send may eat the edge for which another thread sleeps; that thread is told."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: daemon.handler.submitted)
        channel, pump = ring._connection._pump.channel, ring._connection._pump
        channel._poller.unregister(channel._dealer.getsockopt(zmq.FD))  # its edge is eaten
        thread = threading.Thread(target=work.wait, args=(60,))
        thread.start()
        eventually(lambda: pump._pumping)
        send = channel.send

        def sent(*args):
            channel.send = send
            send(*args)
            daemon.run(lambda: daemon.handler.complete(daemon.handler.submitted[0]))
            eventually(lambda: channel._dealer.getsockopt(zmq.EVENTS) & zmq.POLLIN)

        channel.send = sent
        ring.all_reduce_async(SMALL)
        thread.join(30)
        assert not thread.is_alive()


def test_zmq_out_of_descriptors_is_tried_again(tmp_path, monkeypatch):
    """What ZeroMQ raises ends an attempt to connect, not the attempts; nothing is left open."""
    real, calls = channel_module._open_dealer, []

    def scarce(path):
        calls.append(path)
        if len(calls) <= 2:
            raise zmq.ZMQError(errno.EMFILE)
        return real(path)

    monkeypatch.setattr(channel_module, "_open_dealer", scarce)
    with fake(tmp_path) as (daemon, ring):
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert len(calls) == 3
        eventually(lambda: len(daemon.server._by_token) == 1)


def test_interrupted_connect_leaves_no_ghost(tmp_path, monkeypatch):
    """Ctrl-C in connect ends it: nobody attaches later in its name."""
    threads = threading.active_count()
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise KeyboardInterrupt

        patch.setattr(Pump, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ringd.connect(tmp_path / "s", timeout=10)
    assert threading.active_count() == threads
    with fake(tmp_path) as (daemon, _):
        assert len(daemon.handler.attaches) == 1


@BOTH
def test_lost_group_is_told_once_and_joined_anew(tmp_path, x):
    """Open calls end with GroupLost; the next call is made in a new session."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        works = [ring.all_reduce_async(x) for _ in range(4)]
        eventually(lambda: len(daemon.handler.submitted) == 4)
        tell(daemon, lambda join_id: border.Lost(join_id, 2, "group_lost", "b's client died"))
        with pytest.raises(ringd.GroupLost, match="b's client died"):
            works[2].wait(30)
        assert [work.done() for work in works] == [False, False, True, True]
        assert len(daemon.handler.attaches) == 1  # the first two have yet to come
        for i in range(2):
            daemon.run(lambda i=i: daemon.handler.complete(daemon.handler.submitted[i]))
            np.testing.assert_array_equal(works[i].wait(30), 2 * x)
        with pytest.raises(ringd.GroupLost):
            works[3].wait()
        eventually(lambda: len(daemon.handler.attaches) == 2)
        old, new = daemon.handler.attaches
        assert (old.join_id != new.join_id, new.next_seq, new.released) == (True, 0, 0)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * x)
        assert daemon.run(lambda: daemon.handler.submitted[-1].message.join_id) == new.join_id
        daemon.run(lambda: None)
        # What is left over from the old session is of no consequence.
        ((client, _),) = daemon.handler.joins.items()
        for reply in (
            border.Completed(old.join_id, 0, 9, 7),
            border.Failed(old.join_id, 0, 9, "error", "x"),
            border.Lost(old.join_id, 0, "error", "x"),
            border.Released(old.join_id, 5),
            border.Denied(old.join_id, "refused", "x"),
            border.Answer(b"{}"),
        ):
            daemon.run(lambda reply=reply: client.send(reply))
        np.testing.assert_array_equal(ring.all_reduce(x), 2 * x)


def test_one_that_joins_anew_says_who_had_left(tmp_path):
    """Its daemon may be another one by then, and others may be told of its leaving only."""
    with fake(tmp_path) as (daemon, ring):
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "b's client died"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 2)
        first, second = daemon.handler.attaches
        assert (first.former, first.loss) == (0, "")
        assert (second.former, second.loss) == (first.join_id, "b's client died")
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "peer_lost", "the ring broke"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 3)
        assert (daemon.handler.attaches[2].former, daemon.handler.attaches[2].loss) == (
            second.join_id,
            "",
        )


def test_one_that_closes_does_not_join_anew(tmp_path):
    """Also if another client leaves just then: its daemon has forgotten it by now."""
    with fake(tmp_path) as (daemon, ring):
        ring.all_reduce(SMALL)

        def lose(client):
            client.alive = True  # the word is on its way already
            client.send(border.Lost(daemon.handler.joins[client], 1, "group_lost", "b left"))
            client.alive = False

        daemon.handler.on_leave = lose
        ring.close()
        assert daemon.run(lambda: daemon.server.denied) == 0
        assert len(daemon.handler.attaches) == 1


def test_calls_that_are_lost_are_not_announced_again(tmp_path):
    """A new daemon is told how many calls are about to come, and that many come."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        works = [ring.all_reduce_async(SMALL) for _ in range(4)]
        eventually(lambda: len(first.handler.submitted) == 4)
        tell(first, lambda join_id: border.Lost(join_id, 2, "group_lost", "b's client died"))
        eventually(works[2].done)
    with FakeDaemon(tmp_path / "s") as second:
        for work in works[:2]:
            np.testing.assert_array_equal(work.wait(30), 2 * SMALL)
        assert (second.handler.attaches[0].next_seq, len(second.handler.submitted)) == (2, 2)
        ring.close()


def test_loss_without_open_calls_is_told_by_the_next_call(tmp_path):
    """If nothing was open, the next call raises, once."""
    with fake(tmp_path) as (daemon, ring):
        ring.all_reduce(SMALL)
        tell(daemon, lambda join_id: border.Lost(join_id, 1, "group_lost", "died"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 2)
        with pytest.raises(ringd.GroupLost, match="died"):
            ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert len(daemon.handler.attaches) == 2


def test_calls_below_the_floor_go_on(tmp_path):
    """Calls that everybody made can still be made here; only the one after them raises."""
    with fake(tmp_path) as (daemon, ring):
        tell(daemon, lambda join_id: border.Lost(join_id, 2, "group_lost", "died"))
        for _ in range(2):
            np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        with pytest.raises(ringd.GroupLost, match="died"):
            ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)


def test_async_losses_are_told_before_new_calls(tmp_path):
    """Whoever has not waited for the lost calls hears of the loss at the next one."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        works = [ring.all_reduce_async(SMALL) for _ in range(3)]
        eventually(lambda: len(daemon.handler.submitted) == 3)
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "died"))
        eventually(works[0].done)
        with pytest.raises(ringd.GroupLost):
            ring.all_reduce(SMALL)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        for work in works:
            with pytest.raises(ringd.GroupLost):
                work.wait()


@pytest.mark.parametrize("waits", [False, True])
def test_losses_are_told_once_where_each_call_is_reported(tmp_path, waits):
    """Lost calls are reported, then the loss: a wait tells of it, or else the next call does."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Failed(join_id, 0, 0, "group_lost", "died"))
        if waits:
            with pytest.raises(ringd.GroupLost):
                work.wait(30)
        tell(daemon, lambda join_id: border.Lost(join_id, 0, "group_lost", "died"))
        eventually(lambda: (ring.state, len(daemon.handler.attaches))[1] == 2)
        daemon.handler.hold = False
        if not waits:
            with pytest.raises(ringd.GroupLost):
                ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)


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


def test_denied_call_ends_with_the_reason(tmp_path):
    """A Denied on a call ends what is open, and the group can be joined anew."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: daemon.handler.submitted)
        tell(daemon, lambda join_id: border.Denied(join_id, "refused", "op 0 skips"))
        with pytest.raises(ringd.Refused, match="op 0 skips"):
            work.wait(30)
        daemon.handler.hold = False
        np.testing.assert_array_equal(ring.all_reduce(LARGE), 2 * LARGE)


def test_group_given_up_meanwhile_is_group_lost(tmp_path):
    """When the next daemon says that our place is gone, open calls end and we join anew."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: first.handler.submitted)
    with FakeDaemon(tmp_path / "s", deny_attach=("group_lost", "used up; join anew")) as second:
        with pytest.raises(ringd.GroupLost, match="used up"):
            work.wait(30)
        # Denied again and again, it asks only when it is called.
        eventually(lambda: len(second.handler.attaches) == 2)
        ring.state  # noqa: B018 - takes in what has arrived
        second.run(lambda: setattr(second.handler, "deny_attach", None))  # the second is answered
        eventually(lambda: ring._connection._group.untold is not None)
        with pytest.raises(ringd.GroupLost):
            ring.all_reduce(SMALL)
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert len(second.handler.attaches) == 3
        ring.close()


def test_peers_are_remembered_for_the_next_daemon(tmp_path):
    """What a daemon said of the session, also with its last breath, the next one is told."""
    with FakeDaemon(tmp_path / "s") as first:
        ring = ringd.connect(first.path, timeout=10)
        ((client, join_id),) = first.handler.joins.items()
        assert first.handler.attaches[0].session == ()
        first.run(lambda: client.tell_session(join_id + 1, (1, 2)))  # of no stay of ours
        first.run(lambda: client.tell_session(join_id, (join_id, 7, 2**64 - 1)))
    with FakeDaemon(tmp_path / "s") as second:
        np.testing.assert_array_equal(ring.all_reduce(SMALL), 2 * SMALL)
        assert second.handler.attaches[0].session == (join_id, 7, 2**64 - 1)
        ring.close()


def test_draining_daemon_is_asked_again(tmp_path):
    """A daemon on its way out turns a returning client down; the client waits for the next."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10)
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: first.handler.submitted)
    with FakeDaemon(tmp_path / "s", deny_attach=("not_ready", "draining")) as second:
        eventually(lambda: (work.done(), len(second.handler.attaches))[1] >= 2)
        second.handler.deny_attach = None
        np.testing.assert_array_equal(work.wait(30), 2 * SMALL)
        ring.close()


def test_on_loss_fail_ends_calls_when_the_daemon_dies(tmp_path):
    """Who would rather know at once gets PeerLost, and joins the next daemon anew."""
    with FakeDaemon(tmp_path / "s", hold=True) as first:
        ring = ringd.connect(first.path, timeout=10, on_loss="fail")
        work = ring.all_reduce_async(SMALL)
        eventually(lambda: first.handler.submitted)
    with pytest.raises(ringd.PeerLost, match=r"this machine's daemon.*went away"):
        work.wait(30)
    with FakeDaemon(tmp_path / "s") as second:
        np.testing.assert_array_equal(ring.all_reduce(SMALL, timeout=10), 2 * SMALL)
        assert second.handler.attaches[-1].join_id != first.handler.attaches[0].join_id
        assert second.handler.attaches[-1].on_loss == "fail"
        ring.close()


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


def test_garbage_from_the_daemon_is_survived(tmp_path):
    """A message that is none makes the client connect afresh, with everything in hand."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: daemon.handler.submitted)
        (client,) = daemon.run(lambda: daemon.server.clients)
        daemon.handler.hold = False
        daemon.run(lambda: daemon.server._send(client.routing_id, b"\xc1garbage"))
        np.testing.assert_array_equal(work.wait(30), 2 * LARGE)
        assert len(daemon.handler.attaches) == 2


def test_no_daemon_says_what_was_tried(tmp_path):
    """Without a daemon connect fails after its timeout, naming path, reason and remedy."""
    with pytest.raises(ringd.DaemonUnavailable) as missing:
        ringd.connect(tmp_path / "s", timeout=0.05)
    for part in (str(tmp_path / "s"), "No such file", "0.05 s", "ringd --config", "RINGD_SOCKET"):
        assert part in str(missing.value)
    with pytest.raises(ringd.DaemonUnavailable, match="shorter"):
        ringd.connect(tmp_path / ("x" * 120), timeout=0.05)


def test_daemon_that_comes_later_is_waited_for(daemons):
    """A client may be started before its daemon."""
    rings = []
    thread = threading.Thread(target=lambda: rings.append(ringd.connect(daemons.path, timeout=20)))
    thread.start()
    daemons.start()
    thread.join(20)
    np.testing.assert_array_equal(rings[0].all_reduce(SMALL), 2 * SMALL)
    rings[0].close()


def test_socket_that_never_answers_is_no_daemon(tmp_path):
    """Something that listens there and says nothing does not hold connect for ever."""
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as life:
        silent.bind(str(tmp_path / "s"))
        life.bind(str(tmp_path / "s") + lifeline.SUFFIX)
        silent.listen()
        life.listen()
        with pytest.raises(ringd.DaemonUnavailable):
            ringd.connect(tmp_path / "s", timeout=0.1)


def test_reconnecting_leaves_no_descriptors(tmp_path):
    """Fifty daemons later the client has as many descriptors as after the first."""
    counts = []
    ring = None
    for i in range(50):
        with FakeDaemon(tmp_path / "s", limits=Limits(inline_limit=1024)) as daemon:
            ring = ring or ringd.connect(daemon.path, timeout=10)
            np.testing.assert_array_equal(ring.all_reduce(LARGE, timeout=20), 2 * LARGE)
            if i in (5, 49):
                gc.collect()
                counts.append(open_fds())
            if i == 49:
                ring.close()
    assert counts[1] <= counts[0] + 1


def test_forked_child_is_told_and_harms_nobody(tmp_path):
    """After a fork the child gets a clear error and its own ring; the parent goes on."""
    with fake(tmp_path) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        code = (
            "import os, sys\n"
            "import numpy as np\n"
            "import ringd\n"
            "ring = ringd.connect(sys.argv[1], 'f', timeout=10)\n"
            "x = np.ones(50000)\n"
            "assert ring.all_reduce(x)[0] == 2\n"
            "work = ring.all_reduce_async(x)\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    calls = [lambda: ring.all_reduce(x), ring.barrier, work.wait, lambda: ring.rank]\n"
            "    told = 0\n"
            "    for call in calls:\n"
            "        try:\n"
            "            call()\n"
            "        except ringd.RingError as error:\n"
            "            told += 'connect again after fork' in str(error)\n"
            "    ring.close()\n"
            "    with ringd.connect(sys.argv[1], 'child', timeout=10) as own:\n"
            "        good = own.all_reduce(x)[0] == 2\n"
            "    del ring, work\n"
            "    os._exit(0 if told == 4 and good else 1)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
            "assert work.wait()[0] == 2\n"
            "assert all(ring.all_reduce(x)[0] == 2 for _ in range(20))\n"
            "ring.close()\n"
            "print('good')\n"
        )
        run = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", code, daemon.path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (run.stdout, run.returncode) == ("good\n", 0), run.stderr
        np.testing.assert_array_equal(work.wait(30), 2 * LARGE)
        assert daemon.handler.gone == []


def test_parent_death_is_seen_although_a_child_lives(tmp_path):
    """A child of a fork does not keep its dead parent's place in the group."""
    with FakeDaemon(tmp_path / "s") as daemon:
        code = (
            "import os, sys, time, ringd\n"
            "ring = ringd.connect(sys.argv[1], 'f', timeout=10)\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    sys.stdin.read()\n"
            "    os._exit(0)\n"
            "print(pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code, daemon.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            child = int(parent.stdout.readline())
            os.kill(child, 0)
            parent.kill()
            eventually(lambda: daemon.handler.gone)
            os.kill(child, 0)
        finally:
            parent.kill()
            parent.stdin.close()  # ends the child
            parent.wait()
            parent.stdout.close()


def test_program_that_just_ends_does_not_hang(tmp_path):
    """A script that forgets close, with calls open, exits at once and cleanly."""
    with FakeDaemon(tmp_path / "s", hold=True) as daemon:
        code = (
            "import sys, ringd, numpy as np\n"
            "ring = ringd.connect(sys.argv[1], timeout=10)\n"
            "work = ring.all_reduce_async(np.ones(100000))\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, daemon.path],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
        eventually(lambda: daemon.handler.gone)


@pytest.fixture
def _interruptible():
    """Let SIGINT raise also where the tests are a shell's background job, which ignores it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.usefixtures("_interruptible")
def test_interrupt_leaves_the_ring_usable(daemons):
    """Ctrl-C in a waiting call is KeyboardInterrupt at once; the call and the ring go on."""
    daemons.start("--hold")
    with ringd.connect(daemons.path, timeout=10) as ring:
        work = ring.all_reduce_async(SMALL)
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            work.wait(20)
        timer.join()
        daemons.kill()
        daemons.start()
        np.testing.assert_array_equal(work.wait(30), 2 * SMALL)


@pytest.mark.parametrize("count", [1, 10_000, 1_000_000], ids=["4 B", "40 KB", "4 MB"])
def test_blocking_call_wakes_nobody_without_need(daemons, count):
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

    daemons.start()
    x = np.ones(count, np.float32)
    with ringd.connect(daemons.path, timeout=10) as ring:
        for _ in range(5):
            ring.all_reduce(x)
        polls = []
        channel = ring._connection._pump.channel
        poll = channel.poll
        channel.poll = lambda timeout: (polls.append(timeout), poll(timeout))[1]
        keeper = str(ring._connection._keeper.native_id)
        before = switches()
        for _ in range(50):
            ring.all_reduce(x)
        after = switches()
        assert len(polls) <= 55  # one sleep for each call, none in vain
        assert after.get(keeper) == before.get(keeper)


@pytest.mark.parametrize("end", ["forgotten", "exits", "raises", "killed"])
def test_the_daemon_is_told_whether_the_program_lives_on(tmp_path, end):
    """One that runs code yet, if only at its exit, may write to what it had lent; no dead one."""
    parted = []
    with FakeDaemon(tmp_path / "s") as daemon:
        daemon.handler.on_leave = lambda client: parted.append(client.parted)
        if end == "forgotten":
            ring = ringd.connect(daemon.path, timeout=10)
            del ring
            gc.collect()
        else:
            body = {
                "exits": "sys.exit(3)",
                "raises": "raise ValueError",
                "killed": "os.kill(os.getpid(), 9)",
            }[end]
            text = f"import os, sys, ringd; ring = ringd.connect({daemon.path!r}); {body}"
            command = [sys.executable, "-c", text]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=30)
        eventually(lambda: parted)
        assert parted == [end != "killed"]


def test_a_program_that_ends_lets_go_before_it_is_taken_apart(tmp_path):
    """The others need not wait for what it still does at its end."""
    with FakeDaemon(tmp_path / "s") as daemon:
        text = f"""
import atexit, sys, ringd
atexit.register(sys.stdin.read)
ring = ringd.connect({daemon.path!r})
"""
        program = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE)
        eventually(lambda: daemon.handler.gone)
        assert program.poll() is None
        program.communicate()
