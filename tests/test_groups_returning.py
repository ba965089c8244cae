"""A client that comes back to a restarted daemon: nothing is decided before it has spoken."""

from __future__ import annotations

import pytest
from groups_bench import Bench, ready, submission

from ringd.collective.view import View
from ringd.errors import Refused
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import OK
from ringd.wire.link.control import Poll, Verdict


def back(bench, *, expected=1):
    """Op 0 completes on b alone; b's daemon restarts and b attaches, but says no more yet."""
    bench.compute = False
    for rank in range(3):
        timeout = 5.0 if rank == 0 else None
        bench.submit(rank, submission(0, large=True, timeout=timeout))
    bench.settle()
    gid = bench.did(1, actions.Run)[0].gid
    bench.do(1, bench.engines[1].finished(gid, 1, 0, bench.now))
    assert bench.reports(1) == [(0, OK)]
    bench.compute = True
    bench.restart(1)
    bench.up()
    bench.attach(1, 11, session=(10, 11, 12), expected=expected)
    bench.settle()
    bench.tick(5.0)
    bench.settle()


def polls(bench, rank):
    """Return the answers of *rank* to polls."""
    return [a.message.completed for a in bench.did(rank, actions.Relay)]


def test_a_poll_waits_for_what_the_client_is_about_to_say():
    """The call had completed on b; so it completes on all, though its deadline has passed."""
    bench = ready(3)
    back(bench)
    assert (polls(bench, 1), bench.reports(0)) == ([], [])
    bench.submit(1, submission(0, large=True), outcome=OK)
    bench.settle()
    assert polls(bench, 1) == [True]
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_a_poll_on_what_is_new_is_answered_at_once():
    """A client that had not got that far cannot have completed it."""
    bench = ready(3)
    back(bench, expected=0)
    assert polls(bench, 1) == [False]
    assert bench.reports(0) == [(0, "deadline_exceeded")]


@pytest.mark.parametrize("how", ["dies", "stays silent"])
def test_a_poll_does_not_wait_for_a_client_that_will_not_speak(how):
    """The member is named; a living one joins anew."""
    bench = ready(3, reattach=7.0)
    back(bench)
    if how == "dies":
        bench.gone(1)
    else:
        bench.tick(1.9)
        assert bench.did(1, actions.Deny) == []
        bench.tick(0.1)
        assert [a.code for a in bench.did(1, actions.Deny)] == ["group_lost"]
        bench.attach(1, 21)
    bench.settle()
    assert polls(bench, 1) == [False]
    assert [bench.reports(rank) for rank in (0, 2)] == [[(0, "group_lost")]] * 2
    silent = "did not hand its calls over again within 7 s (ops.reattach)"
    reason = {"dies": "died", "stays silent": silent}[how]
    assert f"the client of rank 1 on 'b' {reason}" in bench.message(0)
    assert bench.message(0) == bench.message(2)


def test_a_poll_that_waits_goes_with_the_ring():
    """A break overtakes it; it is asked anew in the next generation, and answered once."""
    bench = ready(3)
    back(bench)
    bench.down()
    bench.up()
    bench.submit(1, submission(0, large=True), outcome=OK)
    bench.settle()
    assert polls(bench, 1) == [True]
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_an_engine_forgets_those_that_are_back():
    """No timer is left over for a client that did its part."""
    bench = ready(3)
    back(bench)
    bench.submit(1, submission(0, large=True), outcome=OK)
    bench.settle()
    bench.tick(60.0)
    assert bench.engines[1].next_deadline is None
    todo = bench.engines[1].received(0, 0, 4711, 0, Poll(5, completed=False), b"", bench.now)
    assert [type(action) for action in todo] == [actions.Relay]


def test_a_deadline_that_was_handed_over_again_tells_what_was_asked_for():
    """Not what is left of it on its second way in."""
    bench = ready(3)
    back(bench)
    bench.engines[1] = bench.make(1)
    bench.down()
    bench.up()
    bench.attach(1, 11, session=(10, 11, 12), expected=3)
    for seq in range(3):
        again = submission(seq, timeout=0.001 if seq == 2 else None)
        again.timeout = 30.0  # as it was asked for
        bench.submit(1, again)
    bench.settle()
    bench.tick(0.001)
    bench.settle()
    assert ": the deadline of 30 s passed on 'b'; not submitted by: a, c" in bench.message(1)


def test_nothing_is_refused_that_the_client_may_have():
    """A call that a restarted daemon could not run any more had completed under the former one."""
    bench = ready(3)
    rules = Rules(refusal=lambda _call, _size: "unknown here")
    bench.make = lambda rank: Engine(view=View(bench.names, rank), rules=rules)
    back(bench)
    assert not any(isinstance(a.message, Verdict) for a in bench.did(1, actions.Broadcast))
    bench.submit(1, submission(0, large=True), outcome=OK)
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("breaks", [False, True])
def test_nothing_is_served_of_a_call_that_cannot_be(hold, breaks):
    """Though its client says, before the group has formed, that it had ended well."""
    bench = Bench(2)
    bench.up()
    bench.attach(0, 10)
    what = submission(0, large=True, hold=hold)
    what.fault = lambda _rank, size: f"it is none of {size}"
    bench.submit(0, what, outcome=OK)
    bench.attach(1, 11)
    bench.settle()
    if breaks:
        bench.down()
        bench.up()
    bench.submit(1, submission(0, large=True))
    bench.settle()
    assert bench.reports(1) == [(0, Refused.code)]
    assert bench.message(1) == "it is none of 2"
    assert not any(bench.did(rank, actions.Run) for rank in range(2))
