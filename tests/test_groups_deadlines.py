"""Deadlines that pass while the ring is broken: whom to wait for, and for how long."""

from __future__ import annotations

import pytest
from groups_bench import Bench, ready, submission

from ringd.client.stay import GRACE
from ringd.collective.view import View
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.op import OK
from ringd.groups.session import Part
from ringd.groups.timing import ASK_WITHIN

LOST_AFTER = Engine(view=View(("a", "b"), 0)).timing.lost_after
STEP = 0.05
"""Seconds; the engine looks again this often, and a little rounding is left."""


def seconds_until_told(bench, limit=30.0):
    """Let time pass until rank 0 is told how its call ended; return how much."""
    start = bench.now
    while not bench.reports(0):
        assert bench.now < start + limit
        bench.tick(STEP)
    return bench.now - start


def test_a_deadline_without_a_ring_ends_the_call_here():
    """Others may have completed it, and cannot be asked: for a while; then it says why."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=1.0))
    bench.down()
    assert seconds_until_told(bench) == pytest.approx(1.0 + ASK_WITHIN, abs=2 * STEP)
    assert bench.reports(0) == [(0, "deadline_exceeded")]
    assert "the ring is not up: link to b lost" in bench.message(0)


@pytest.mark.parametrize("timeout", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("looks", [(1.0, 1.0, 1.0, 1.0, 1.0), (5.0,)], ids=["in time", "late"])
def test_a_deadline_passes_in_its_time_whether_or_not_it_is_said_before_that_a_call_waits(
    timeout, looks
):
    """Also where the daemon looks at the clock once, after all of that."""
    bench = ready(2, stall_warning=2.0)
    bench.down()
    bench.submit(0, submission(0, timeout=timeout))
    told = []
    for wait in looks:
        bench.tick(wait)
        if bench.reports(0) and not told:
            told.append(bench.now)
    assert told == [max(timeout, looks[0])]
    assert len(bench.did(0, actions.Warn)) == (timeout > 2.0 and len(looks) > 1)
    assert bench.engines[0].next_deadline is None


def test_a_call_that_nobody_has_heard_of_ends_at_its_deadline():
    """Nobody can have completed what was handed over after the ring broke."""
    bench = ready(2)
    bench.down()
    bench.submit(0, submission(0, timeout=1.0))
    assert seconds_until_told(bench) == pytest.approx(1.0, abs=2 * STEP)
    bench.up()
    bench.submit(1, submission(0))
    bench.settle()
    assert bench.reports(1) == [(0, "deadline_exceeded")]


def test_a_call_that_a_former_daemon_had_may_have_completed():
    """A restarted daemon cannot know whether it was offered, and waits to ask."""
    bench = ready(2)
    bench.engines[0] = bench.make(0)
    bench.attach(0, 10, session=(10, 11), expected=1)
    bench.submit(0, submission(0, timeout=1.0))
    assert seconds_until_told(bench) == pytest.approx(1.0 + ASK_WITHIN, abs=2 * STEP)


def test_patience_begins_with_a_break_that_takes_the_poll_along():
    """However long the poll was under way: it may be asked anew as long as after any break."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=1.0))
    bench.tick(1.0)
    bench.tick(0.9 * LOST_AFTER)
    bench.down()
    assert seconds_until_told(bench) == pytest.approx(ASK_WITHIN, abs=2 * STEP)


@pytest.mark.parametrize("large", [False, True])
def test_a_deadline_ends_a_call_that_could_run_at_last(large):
    """Where all ranks are here, what was asked and what is offered meet in one event."""
    bench = Bench(2)
    bench.up()
    for local_rank, client in enumerate(("x", "y")):
        bench.attach(0, 20 + local_rank, client=client, part=Part(local_rank, 2, (0,)))
    bench.submit(0, submission(0, timeout=1.0, large=large), join_id=20, client="x")
    bench.down()
    bench.submit(0, submission(0, large=large), join_id=21, client="y")
    bench.tick(1.1)
    bench.up()
    assert bench.reports(0) == [(0, "deadline_exceeded")] * 2
    assert bench.did(0, (actions.Run, actions.Stop)) == []
    assert bench.freed() == [1, 1]


def test_one_break_after_the_other_does_not_put_it_off_for_ever():
    """Else the client would decide alone while its daemon still waits to ask."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=1.0))
    bench.tick(1.0)
    while not bench.reports(0):
        assert bench.now < 30
        bench.down()
        bench.tick(0.2)
        for rank, engine in enumerate(bench.engines):
            bench.do(rank, engine.ring_up(bench.now))  # and breaks before anybody is heard
    assert bench.now - 1.0 == pytest.approx(LOST_AFTER + ASK_WITHIN, abs=0.2 + 2 * STEP)


def test_a_daemon_that_stood_still_asks_when_it_goes_on():
    """The seconds in which it was stopped itself were none in which it could ask."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=1.0))
    bench.submit(1, submission(0))
    bench.down()
    bench.tick(1.0)  # rank 0 is due, and looks again; then it is stopped
    bench.now += 2 * ASK_WITHIN
    bench.tick(0.0)
    assert bench.reports(0) == []
    bench.up()
    bench.settle()
    assert bench.reports(0) == bench.reports(1) == [(0, "deadline_exceeded")]


def test_a_client_has_its_time_to_come_back_though_the_daemon_stood_still():
    """Nobody can attach to a daemon that is stopped, nor hand its calls over again."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.settle()
    bench.restart(0)
    bench.up()
    reattach = bench.engines[0].timing.reattach
    bench.tick(reattach / 2)
    bench.now += 2 * reattach
    bench.tick(0.0)
    bench.attach(0, 10, session=(10, 11), expected=1)
    bench.now += 2 * reattach
    bench.tick(0.0)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    assert bench.reports(0) == bench.reports(1) == [(0, OK)]


def test_a_client_waits_longer_than_its_daemon_may():
    """Else it would decide alone while the others are about to be asked."""
    assert ASK_WITHIN + 0.5 <= GRACE


@pytest.mark.parametrize("polled", [True, False])
def test_a_deadline_in_a_short_break_is_settled_after_it(polled):
    """The others are asked when the ring is back: all have the error, or all the result."""
    for completed in (True, False):
        bench = ready(2)
        bench.compute = False
        for rank in range(2):
            bench.submit(rank, submission(0, large=True, timeout=None if rank else 1.0))
        bench.settle()
        if completed:
            gid = bench.did(1, actions.Run)[0].gid
            bench.do(1, bench.engines[1].finished(gid, 1, 0, bench.now))
        bench.tick(0.9)
        if polled:
            bench.tick(0.1)  # and the break overtakes the poll
        bench.down()
        bench.tick(0.5)
        assert bench.reports(0) == []
        bench.up()
        bench.settle()
        bench.tick(0.05)
        bench.settle()
        if completed:  # b serves, and the call goes on to its end
            gid = bench.did(0, actions.Run)[-1].gid
            for rank in range(2):
                bench.do(rank, bench.engines[rank].finished(gid, rank, 0, bench.now))
            bench.settle()
        outcome = OK if completed else "deadline_exceeded"
        assert [bench.reports(rank) for rank in range(2)] == [[(0, outcome)]] * 2
