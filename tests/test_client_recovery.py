"""The daemon dies and the next one comes: what is unfinished is handed over again."""

import gc
import threading

import numpy as np
from clientkit import BOTH, INLINE_LIMIT, LARGE, SMALL, fake, session_of, tell
from fake_daemon import FakeDaemon, eventually, open_fds

import ringd
from ringd.border.limits import Limits
from ringd.wire.border import messages as border


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
        thread.join(120)
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


@BOTH
def test_finished_calls_are_offered_again_until_released(tmp_path, x):
    """A new daemon is told of everything not finished everywhere, with its outcome and input."""
    limits = Limits(inline_limit=INLINE_LIMIT)
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
    limits = Limits(inline_limit=INLINE_LIMIT)
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


def test_garbage_from_the_daemon_is_survived(tmp_path):
    """A message that is none makes the client connect afresh, with everything in hand."""
    with fake(tmp_path, hold=True) as (daemon, ring):
        work = ring.all_reduce_async(LARGE)
        eventually(lambda: daemon.handler.submitted)
        (client,) = daemon.run(lambda: daemon.server.clients)
        daemon.handler.hold = False
        daemon.run(lambda: client.calls.send((b"\xc1garbage",)))
        np.testing.assert_array_equal(work.wait(30), 2 * LARGE)
        assert len(daemon.handler.attaches) == 2


def test_reconnecting_leaves_no_descriptors(tmp_path):
    """Fifty daemons later the client has as many descriptors as after the first."""
    counts = []
    ring = None
    for i in range(50):
        with FakeDaemon(tmp_path / "s", limits=Limits(inline_limit=INLINE_LIMIT)) as daemon:
            ring = ring or ringd.connect(daemon.path, timeout=10)
            np.testing.assert_array_equal(ring.all_reduce(LARGE, timeout=20), 2 * LARGE)
            if i in (5, 49):
                gc.collect()
                counts.append(open_fds())
            if i == 49:
                ring.close()
    assert counts[1] <= counts[0] + 1
