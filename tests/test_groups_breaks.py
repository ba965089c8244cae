"""The ring breaks or a daemon restarts: calls run again, sessions are found back or given up."""

from __future__ import annotations

from groups_bench import Bench, all_reduce, call, ready, submission

from ringd.groups import actions
from ringd.groups.op import OK
from ringd.wire.link.control import Left, Offer


def test_a_break_runs_open_calls_again_and_serves_those_that_missed_the_end():
    """Who has its result runs again for the others and is told nothing twice."""
    bench = ready(3)
    bench.compute = False
    for rank in range(3):
        bench.submit(rank, submission(0, large=True))
    bench.settle()
    gid = bench.did(0, actions.Run)[0].gid
    bench.do(0, bench.engines[0].finished(gid, 0, 0, bench.now))
    bench.down()
    assert [len(bench.did(rank, actions.Stop)) for rank in range(3)] == [0, 1, 1]
    bench.compute = True
    bench.up()
    assert [a.serve for a in bench.did(0, actions.Run)] == [False, True]
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_a_restarted_daemon_is_offered_what_it_lost():
    """Its client attaches with what it knows, submits again, and the call completes."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.restart(1)
    bench.up()
    bench.attach(1, 11, session=(10, 11, 12))
    bench.submit(1, submission(0))
    bench.submit(2, submission(0))
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_a_restarted_daemon_learns_the_session_from_others():
    """Also a client that was told nothing finds back to where it is counted on."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.settle()
    bench.restart(1)
    bench.attach(1, 11)
    bench.up()
    assert bench.engines[1].roll.seats[11].session.peers.join_ids == (10, 11, 12)


def test_a_client_that_does_not_come_back_is_given_up_after_a_grace():
    """Its daemon restarted without it; the others wait that long and not longer."""
    bench = ready(3, reattach=5.0)
    bench.submit(0, submission(0))
    bench.settle()
    bench.restart(1)
    bench.up()
    bench.tick(4.9)
    bench.settle()
    assert bench.reports(0) == []
    bench.tick(0.1)
    bench.settle()
    assert bench.reports(0) == [(0, "group_lost")]
    text = "'b' did not come back within 5 s (ops.reattach) after its daemon restarted"
    assert text in bench.message(0)
    bench.attach(1, 11, session=(10, 11, 12))
    assert bench.did(1, actions.Deny)[0].code == "group_lost"


def test_a_newcomer_replaces_an_absent_client_at_once():
    """Nobody waits out the grace once the place is taken."""
    bench = ready(2, reattach=5.0)
    bench.submit(0, submission(0))
    bench.settle()
    bench.restart(1)
    bench.up()
    bench.attach(1, 21, client="b2")
    bench.settle()
    assert bench.reports(0) == [(0, "group_lost")]
    assert "was replaced" in bench.message(0)


def test_what_the_client_knows_survives_its_daemon():
    """An outcome that was sealed or told is offered as such and never computed anew here."""
    bench = ready(2)
    all_reduce(bench)
    bench.restart(0)
    bench.attach(0, 10, session=(10, 11))
    bench.submit(0, submission(0), outcome=OK)
    bench.up()
    assert bench.reports(0) == [(0, OK)]  # from before
    bench.tick(1.0)
    bench.settle()
    assert bench.engines[1].roll.groups["g"].local[0].ledger.released == 1


def test_one_that_comes_back_late_learns_what_is_done_also_from_those_not_yet_gone():
    """The session goes live no more, as one member is gone; still all of it is released."""
    bench = ready(3)
    all_reduce(bench)
    bench.gone(2)
    bench.settle()
    bench.tick(0.1)
    bench.settle()
    assert bench.engines[2].roll.seats == {}
    bench.restart(1)
    bench.up()
    bench.attach(1, 11, session=(10, 11, 12))
    bench.submit(1, submission(0), outcome=OK)
    bench.settle()
    assert bench.engines[1].roll.seats[11].ledger.released == 1


def test_a_session_that_winds_up_does_not_hide_the_next_client():
    """The new clients of two places stay known, though their predecessors are spoken of again."""
    bench = ready(3)
    for rank in (0, 2):
        bench.submit(rank, submission(0))
    bench.settle()
    for rank in (0, 2):
        bench.gone(rank)
        bench.attach(rank, 20 + rank, client="next")
    bench.settle()
    bench.restart(1)
    bench.up()
    bench.attach(1, 11, session=(10, 11, 12))
    bench.submit(1, submission(0))
    bench.settle()
    assert bench.reports(1) == [(0, OK)]
    bench.attach(1, 21)
    bench.submit(1, submission(0), join_id=21)
    for rank in (0, 2):
        bench.submit(rank, submission(0), join_id=20 + rank, client="next")
    bench.settle()
    assert bench.reports(1) == [(0, OK), (0, OK)]


def test_messages_of_an_older_session_are_counted_and_dropped():
    """They belong to nobody here."""
    bench = ready(2)
    offer = Offer(call(), 0, eager=False, prompt=False, outcome="", message="")
    bench.do(0, bench.engines[0].received(1, 1, 4711, 0, offer, b"", 0.0))
    assert [a.reason for a in bench.did(0, actions.Dropped)] == ["of a session unknown here"]
    left = Left("g", 4711, 0, "group_lost", "gone")
    bench.do(0, bench.engines[0].received(1, 1, 4711, 0, left, b"", 0.0))
    all_reduce(bench)
    assert bench.reports(0) == [(0, OK)]


def test_on_loss_fail_tells_at_once():
    """Open calls end with PeerLost when the ring breaks; those of patient clients wait on."""
    bench = Bench(2)
    bench.up()
    bench.attach(0, 10, on_loss="fail")
    bench.attach(1, 11)
    bench.settle()
    bench.submit(0, submission(0))
    bench.submit(1, submission(0), acked=0)
    bench.down()
    assert bench.reports(0) == [(0, "peer_lost")]
    assert bench.message(0) == "the ring broke: link to b lost"
    assert bench.reports(1) == []
    bench.up()
    assert bench.reports(1) == [(0, "peer_lost")]


def test_on_loss_fail_refuses_calls_while_the_ring_is_down():
    """A call that could not run fails at once, and no error is told twice."""
    bench = Bench(2)
    bench.up()
    bench.attach(0, 10, on_loss="fail")
    bench.attach(1, 11)
    bench.settle()
    bench.down()
    assert bench.did(0, actions.TellLost) == []
    bench.submit(0, submission(0))
    assert bench.reports(0) == [(0, "peer_lost")]
    assert len(bench.did(0, actions.TellLost)) == 1
