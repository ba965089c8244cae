"""Groups, sessions and ops, step by step: what each rank is told, and when."""

from __future__ import annotations

import pytest
from groups_bench import Bench, call, ready, submission

from ringd.client.connection import GRACE
from ringd.groups import actions
from ringd.groups.engine import ASK_WITHIN
from ringd.groups.op import OK
from ringd.groups.words import differences
from ringd.wire.control import MAX_TEXT, Left, Offer


def all_reduce(bench, seq=0, **kwargs):
    """Every rank hands over op *seq*."""
    for rank in range(bench.n):
        bench.submit(rank, submission(seq, now=bench.now, **kwargs))
    bench.settle()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("large", [False, True])
def test_a_call_completes_on_every_rank(n, large):
    """All submit, all are told, once."""
    bench = ready(n)
    all_reduce(bench, large=large)
    assert [bench.reports(rank) for rank in range(n)] == [[(0, OK)]] * n


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_clients_and_ring_come_in_any_order(order):
    """Clients may attach and submit before the ring is up, and in any order."""
    bench = Bench(3)
    for rank in order:
        bench.attach(rank, 10 + rank)
        bench.submit(rank, submission(0))
    bench.up()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_the_client_knows_its_peers_before_anything_is_offered():
    """A restarted daemon gets from its client what it needs to find the others again."""
    bench = ready(2)
    bench.submit(0, submission(0))
    kinds = [type(action) for action in bench.log[0]]
    offers = [a for a in bench.did(0, actions.Broadcast) if isinstance(a.message, Offer)]
    assert bench.did(0, actions.TellSession)[0].session == (10, 11)
    assert kinds.index(actions.TellSession) < bench.log[0].index(offers[0])


def test_a_mismatch_reads_the_same_on_every_rank_and_harms_nothing_else():
    """Each rank's text shows what each member sent; the next op completes."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0, what=call(shape=4)))
    bench.submit(2, submission(0))
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, "mismatch")]] * 3
    assert len({bench.message(rank) for rank in range(3)}) == 1
    assert "a, c: all_reduce sum float32[3]" in bench.message(1)
    assert "b: all_reduce sum float32[4]" in bench.message(1)
    all_reduce(bench, 1)
    assert [bench.reports(rank)[-1] for rank in range(3)] == [(1, OK)] * 3


def test_a_mismatch_of_many_long_calls_still_tells_of_each():
    """The text fits into what may be offered again, and has something of every member in it."""
    names = tuple(f"machine-{rank}" for rank in range(64))
    offers = [
        Offer(call(rank, f"{rank:03}" * 80), 0, eager=False, prompt=False, outcome="", message="")
        for rank in range(64)
    ]
    text = differences("g" * 64, 7, offers, names)
    assert len(text) <= MAX_TEXT
    assert all(f"machine-{rank}: all_reduce" in text for rank in range(64))
    assert all(f"{rank:03}'" in text for rank in range(64))


def test_a_rank_ahead_of_the_others_is_seen_in_the_counts():
    """Diverging counts are the diagnosis of a program that is out of step."""
    bench = ready(3)
    for seq in range(4):
        bench.submit(1, submission(seq))
    bench.submit(2, submission(0))
    bench.settle()
    assert [e.groups["g"].local.counts for e in bench.engines] == [[0, 4, 1]] * 3


# --- submitting again -----------------------------------------------------------------


def test_submitting_twice_is_harmless():
    """Open, running, ended or released: the second one is freed and nothing else happens."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.submit(0, submission(0))
    assert bench.freed()[1:2] + bench.freed()[3:] == [1, 1]
    assert [bench.reports(rank) for rank in range(2)] == [[(0, OK)]] * 2
    assert [a.reason for a in bench.did(0, actions.Dropped)] == ["submitted twice"] * 2


def test_a_changed_resubmission_is_refused():
    """Another call under the same number is an error that names both; the first one stands."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.submit(0, submission(0, what=call(shape=9)))
    deny = bench.did(0, actions.Deny)[0]
    assert deny.code == "refused"
    assert "float32[3]" in deny.message
    assert "float32[9]" in deny.message
    bench.submit(1, submission(0))
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_a_skipped_number_is_refused():
    """Ops are numbered without gaps."""
    bench = ready(2)
    bench.submit(0, submission(2))
    assert "skips op 0" in bench.did(0, actions.Deny)[0].message
    assert bench.freed() == [1]


def test_the_window_bounds_what_is_kept():
    """One op too many is refused, and the number can be used once others are released."""
    bench = ready(2, window=2)
    for seq in range(3):
        bench.submit(0, submission(seq))
    assert "ipc.window" in bench.did(0, actions.Deny)[0].message
    for seq in range(2):
        bench.submit(1, submission(seq))
    bench.settle()
    bench.tick(1.0)
    bench.settle()
    bench.submit(0, submission(2))
    assert len(bench.did(0, actions.Deny)) == 1


def test_a_lent_input_needs_a_sealed_target():
    """Holders would otherwise wait for each other's acknowledgements."""
    bench = ready(2)
    bench.submit(0, submission(0, hold=True, sealed=False))
    assert "sealed" in bench.did(0, actions.Deny)[0].message


@pytest.mark.parametrize(("join_id", "released"), [(0, 0), (2**64, 0), (-1, 0), (5, -1)])
def test_an_impossible_join_is_refused(join_id, released):
    """Numbers come from a program and may be anything."""
    bench = Bench(1)
    bench.attach(0, join_id, released=released)
    assert [a.code for a in bench.did(0, actions.Deny)] == ["refused"]


def test_a_client_cannot_acknowledge_the_future():
    """A wild acknowledgement costs no time and settles nothing that is open."""
    bench = ready(2)
    bench.submit(0, submission(0, sealed=False), acked=2**62)
    bench.submit(1, submission(0, sealed=False))
    bench.settle()
    assert bench.engines[1].groups["g"].local.floor == 0


def test_a_stranger_cannot_submit_for_another():
    """A join belongs to the connection that made it."""
    bench = ready(2)
    bench.submit(0, submission(0), client="mallory")
    assert bench.did(0, actions.Deny)[0].message == "attach to the group first"


# --- release --------------------------------------------------------------------------


def test_sealed_results_are_released_without_acknowledgement():
    """The seal tells the client whatever happens; each submission is freed once."""
    bench = ready(3)
    all_reduce(bench)
    bench.tick(0.1)
    bench.settle()
    bench.tick(0.1)
    assert bench.freed() == [1, 1, 1]
    assert bench.did(1, actions.TellReleased)[-1].released == 1


def test_inline_results_are_kept_until_acknowledged():
    """A daemon could die with the answer; so the others keep their inputs until it arrived."""
    bench = ready(2)
    all_reduce(bench, sealed=False)
    bench.tick(1.0)
    bench.settle()
    assert bench.freed() == [0, 0]
    bench.submit(0, submission(1), acked=1)
    bench.submit(1, submission(1), acked=1)
    bench.settle()
    assert bench.freed()[:2] == [1, 1]


def test_errors_free_their_input_at_once():
    """Nobody can need the input of a call that failed."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0, what=call(shape=5)))
    bench.settle()
    assert bench.freed() == [1, 1]


def test_everything_is_gone_after_all_have_left():
    """No session, no op, no group is left over, and nothing freed twice."""
    bench = ready(3)
    all_reduce(bench, sealed=False)
    for rank in range(3):
        bench.gone(rank)
    bench.settle()
    bench.tick(0.1)
    bench.settle()
    for engine in bench.engines:
        assert (engine.joins, engine.by_gid, engine.groups, engine.absent) == ({}, {}, {}, {})
    assert bench.freed() == [1, 1, 1]


def test_calls_that_fail_after_their_client_has_left_are_settled_too():
    """Nobody is there to acknowledge a mismatch; it must not keep the session for ever."""
    bench = ready(3)
    bench.submit(2, submission(0, what=call(shape=8)))
    bench.settle()
    bench.gone(2)
    bench.settle()
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    assert [bench.reports(rank) for rank in (0, 1)] == [[(0, "mismatch")]] * 2
    for rank in range(2):
        bench.gone(rank)
    bench.settle()
    bench.tick(0.1)
    bench.settle()
    assert [engine.joins for engine in bench.engines] == [{}, {}, {}]


# --- deadlines ------------------------------------------------------------------------


def test_a_deadline_ends_the_call_everywhere_and_names_who_is_missing():
    """Those who had submitted and those who had not get the same error for it."""
    bench = ready(3)
    bench.submit(0, submission(0, timeout=2.0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.tick(2.0)
    bench.settle()
    bench.submit(2, submission(0))
    assert [bench.reports(rank) for rank in range(3)] == [[(0, "deadline_exceeded")]] * 3
    assert len({bench.message(rank) for rank in range(3)}) == 1
    assert "the deadline of 2 s passed on 'a'; not submitted by: c" in bench.message(2)
    all_reduce(bench, 1)
    assert [bench.reports(rank)[-1] for rank in range(3)] == [(1, OK)] * 3


def test_a_deadline_that_comes_after_somebody_completed_changes_nothing():
    """The poll finds the completed rank; all complete."""
    bench = ready(3)
    bench.compute = False
    for rank in range(3):
        bench.submit(rank, submission(0, large=True, timeout=1.0 if rank == 0 else None))
    bench.settle()
    gid = bench.did(1, actions.Run)[0].gid
    bench.do(1, bench.engines[1].finished(gid, 0, bench.now))
    bench.tick(1.0)
    bench.settle()
    for rank in (0, 2):
        bench.do(rank, bench.engines[rank].finished(gid, 0, bench.now))
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_a_result_that_comes_during_a_poll_waits_for_the_verdict():
    """Who was asked completes only when the verdict allows it: error here, error there."""
    bench = ready(3)
    bench.compute = False
    for rank in range(3):
        bench.submit(rank, submission(0, large=True, timeout=1.0 if rank == 0 else None))
    bench.settle()
    gid = bench.did(1, actions.Run)[0].gid
    bench.tick(1.0)
    bench.step(0)  # the poll has passed b
    bench.do(1, bench.engines[1].finished(gid, 0, bench.now))
    assert bench.reports(1) == []
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, "deadline_exceeded")]] * 3
    assert len(bench.did(2, actions.Stop)) == 1


def test_two_deadlines_at_once_end_in_one_outcome():
    """All clients of a program tend to have the same timeout."""
    bench = ready(4)
    for rank in range(3):
        bench.submit(rank, submission(0, timeout=1.0))
    bench.settle()
    bench.tick(1.0)
    bench.settle()
    bench.submit(3, submission(0))
    bench.settle()
    assert [bench.reports(rank) for rank in range(4)] == [[(0, "deadline_exceeded")]] * 4


def test_a_deadline_without_a_ring_ends_the_call_here():
    """Nobody can be asked, for a second; the error says that the ring is down, and why."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=1.0))
    bench.down()
    bench.tick(1.0)
    bench.tick(0.99)
    assert bench.reports(0) == []
    bench.tick(0.02)
    bench.tick(0.05)
    assert bench.reports(0) == [(0, "deadline_exceeded")]
    assert "the ring is not up: link to b lost" in bench.message(0)


def test_a_client_waits_longer_than_its_daemon_may():
    """Else it would decide alone while the others are about to be asked."""
    assert ASK_WITHIN < GRACE


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
            bench.do(1, bench.engines[1].finished(gid, 0, bench.now))
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
                bench.do(rank, bench.engines[rank].finished(gid, 0, bench.now))
            bench.settle()
        outcome = OK if completed else "deadline_exceeded"
        assert [bench.reports(rank) for rank in range(2)] == [[(0, outcome)]] * 2


def test_a_deadline_before_the_group_is_complete_names_the_absent():
    """Who waits for a client that never came learns where it is missing."""
    bench = Bench(3)
    bench.up()
    bench.attach(0, 10)
    bench.attach(1, 11)
    bench.submit(0, submission(0, timeout=1.0))
    bench.settle()
    bench.tick(1.0)
    assert "no client in the group on: c" in bench.message(0)


# --- lost clients ---------------------------------------------------------------------


def test_a_dead_client_ends_the_calls_it_has_no_part_in():
    """The error names the member."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.gone(2)
    bench.settle()
    assert bench.reports(0) == [(0, "group_lost")]
    assert bench.message(0) == "the client on 'c' died"
    assert bench.did(1, actions.TellLost)[0].floor == 0


def test_what_a_dead_client_handed_over_completes_for_the_others():
    """Its daemon stands in for it, also through a break of the ring."""
    bench = ready(3)
    bench.submit(2, submission(0, large=True))
    bench.settle()
    bench.gone(2)
    bench.settle()
    bench.down()
    bench.up()
    bench.submit(0, submission(0, large=True))
    bench.submit(1, submission(0, large=True))
    bench.submit(1, submission(1))
    bench.settle()
    assert bench.reports(0) == [(0, OK)]
    assert bench.reports(1) == [(1, "group_lost"), (0, OK)]


def test_a_client_of_a_session_that_never_went_live_is_spared():
    """Nothing was offered: it waits for the next one and never hears of the loss."""
    bench = Bench(3)
    bench.up()
    bench.attach(0, 10)
    bench.attach(1, 11)
    bench.submit(0, submission(0))
    bench.settle()
    bench.attach(2, 12)
    bench.step(2)
    assert bench.engines[0].groups["g"].local.formed
    bench.gone(2)
    while bench.links[2]:  # all that c ever says is here before b could answer
        bench.step(2)
    bench.settle()
    assert (bench.reports(0), bench.did(0, actions.TellLost)) == ([], [])
    bench.attach(1, 21)
    bench.attach(2, 22, client="c2")
    bench.settle()
    bench.submit(1, submission(0), join_id=21)
    bench.submit(2, submission(0), join_id=22, client="c2")
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_one_can_join_anew_at_once():
    """The newcomer meets peers that have not noticed yet, and is told of no loss itself."""
    bench = ready(3)
    bench.submit(1, submission(0))
    bench.submit(2, submission(0))
    bench.settle()
    bench.gone(0)
    bench.attach(0, 20, client="a2")
    bench.submit(0, submission(0), join_id=20, client="a2")
    bench.settle()
    assert [bench.reports(rank) for rank in (1, 2)] == [[(0, "group_lost")]] * 2
    for rank in (1, 2):
        bench.attach(rank, 20 + rank)
        bench.submit(rank, submission(0), join_id=20 + rank)
    bench.settle()
    ours = [a for a in bench.did(0, actions.Report) if a.join_id == 20]
    assert [a.code for a in ours] == [OK]
    assert not any(a.join_id == 20 for a in bench.did(0, actions.TellLost))


def test_a_second_client_of_the_group_is_refused_here():
    """The place is taken until its owner leaves."""
    bench = ready(2)
    bench.attach(0, 99, client="other")
    assert bench.did(0, actions.Deny)[0].code == "refused"
    assert "has a client on 'a' already" in bench.did(0, actions.Deny)[0].message
    bench.gone(0)
    bench.attach(0, 99, client="other")
    assert bench.did(0, actions.Accept)[-1].join_id == 99


def test_a_join_id_is_used_once():
    """Who was given up has to join anew."""
    bench = ready(2)
    bench.gone(0)
    bench.settle()
    bench.attach(0, 10)
    assert bench.did(0, actions.Deny)[0].code == "group_lost"


def test_attaching_twice_is_harmless():
    """The same client with the same join is accepted again."""
    bench = ready(2)
    bench.attach(0, 10)
    assert len(bench.did(0, actions.Accept)) == 2
    all_reduce(bench)
    assert bench.reports(1) == [(0, OK)]


def test_groups_do_not_wait_for_each_other():
    """A stalled, a failed and a dying group leave another one alone."""
    bench = ready(2)
    bench.join_all(base=30, group="h", client="x")
    bench.submit(0, submission(0))
    for rank in range(2):
        bench.submit(rank, submission(0), join_id=30 + rank, client="x")
    bench.settle()
    assert bench.reports(1) == [(0, OK)]
    bench.gone(0)
    bench.settle()
    for rank in range(2):
        bench.submit(rank, submission(1), join_id=30 + rank, client="x")
    bench.settle()
    assert bench.reports(1) == [(0, OK), (1, OK)]


# --- breaks and restarts --------------------------------------------------------------


def test_a_break_runs_open_calls_again_and_serves_those_that_missed_the_end():
    """Who has its result runs again for the others and is told nothing twice."""
    bench = ready(3)
    bench.compute = False
    for rank in range(3):
        bench.submit(rank, submission(0, large=True))
    bench.settle()
    gid = bench.did(0, actions.Run)[0].gid
    bench.do(0, bench.engines[0].finished(gid, 0, bench.now))
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
    bench.down()
    bench.engines[1] = bench.make(1)
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
    bench.down()
    bench.engines[1] = bench.make(1)
    bench.attach(1, 11)
    bench.up()
    assert bench.engines[1].joins[11].join_ids == (10, 11, 12)


def test_a_client_that_does_not_come_back_is_given_up_after_a_grace():
    """Its daemon restarted without it; the others wait that long and not longer."""
    bench = ready(3, reattach=5.0)
    bench.submit(0, submission(0))
    bench.settle()
    bench.down()
    bench.engines[1] = bench.make(1)
    bench.up()
    bench.tick(4.9)
    bench.settle()
    assert bench.reports(0) == []
    bench.tick(0.1)
    bench.settle()
    assert bench.reports(0) == [(0, "group_lost")]
    assert "'b' did not come back after its daemon restarted" in bench.message(0)
    bench.attach(1, 11, session=(10, 11, 12))
    assert bench.did(1, actions.Deny)[0].code == "group_lost"


def test_a_newcomer_replaces_an_absent_client_at_once():
    """Nobody waits out the grace once the place is taken."""
    bench = ready(2, reattach=5.0)
    bench.submit(0, submission(0))
    bench.settle()
    bench.down()
    bench.engines[1] = bench.make(1)
    bench.up()
    bench.attach(1, 21, client="b2")
    bench.settle()
    assert bench.reports(0) == [(0, "group_lost")]
    assert "was replaced" in bench.message(0)


def test_what_the_client_knows_survives_its_daemon():
    """An outcome that was sealed or told is offered as such and never computed anew here."""
    bench = ready(2)
    all_reduce(bench)
    bench.down()
    bench.engines[0] = bench.make(0)
    bench.attach(0, 10, session=(10, 11))
    bench.submit(0, submission(0), outcome=OK)
    bench.up()
    assert bench.reports(0) == [(0, OK)]  # from before
    bench.tick(1.0)
    bench.settle()
    assert bench.engines[1].groups["g"].local.floor == 1


def test_one_that_comes_back_late_learns_what_is_done_also_from_those_not_yet_gone():
    """The session goes live no more, as one member is gone; still all of it is released."""
    bench = ready(3)
    all_reduce(bench)
    bench.gone(2)
    bench.settle()
    bench.tick(0.1)
    bench.settle()
    assert bench.engines[2].joins == {}
    bench.down()
    bench.engines[1] = bench.make(1)
    bench.up()
    bench.attach(1, 11, session=(10, 11, 12))
    bench.submit(1, submission(0), outcome=OK)
    bench.settle()
    assert bench.engines[1].joins[11].floor == 1


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
    bench.down()
    bench.engines[1] = bench.make(1)
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
    bench.do(0, bench.engines[0].received(1, 4711, 0, offer, b"", 0.0))
    assert [a.reason for a in bench.did(0, actions.Dropped)] == ["of a session unknown here"]
    left = Left("g", 4711, 0, "group_lost", "gone")
    bench.do(0, bench.engines[0].received(1, 4711, 0, left, b"", 0.0))
    all_reduce(bench)
    assert bench.reports(0) == [(0, OK)]


def test_an_offer_of_a_released_op_is_ignored():
    """Late repetitions open nothing."""
    bench = ready(2)
    all_reduce(bench)
    bench.tick(1.0)
    bench.settle()
    session = bench.engines[0].groups["g"].local
    offer = Offer(call(), 0, eager=True, prompt=False, outcome="", message="")
    bench.do(0, bench.engines[0].received(1, session.gid, 0, offer, b"late", 0.0))
    assert (session.floor, session.ops) == (1, {})


# --- on_loss --------------------------------------------------------------------------


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


# --- lent inputs ----------------------------------------------------------------------


def test_a_lender_is_told_when_nobody_can_need_its_input():
    """Its result stands earlier, but a break could still make others ask for the input."""
    bench = ready(3)
    bench.compute = False
    for rank in range(3):
        bench.submit(rank, submission(0, large=True, hold=rank == 0))
    bench.settle()
    gid = bench.did(0, actions.Run)[0].gid
    bench.do(0, bench.engines[0].finished(gid, 0, bench.now))
    bench.do(1, bench.engines[1].finished(gid, 0, bench.now))
    bench.settle()
    assert (bench.reports(0), bench.reports(1)) == ([], [(0, OK)])
    bench.do(2, bench.engines[2].finished(gid, 0, bench.now))
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_a_lender_waits_until_an_inline_result_is_acknowledged():
    """A result that a dying daemon could take along may have to be computed again."""
    bench = ready(2)
    bench.submit(0, submission(0, large=True, hold=True))
    bench.submit(1, submission(0, large=True, sealed=False))
    bench.settle()
    assert (bench.reports(0), bench.reports(1)) == ([], [(0, OK)])
    bench.submit(1, submission(1), acked=1)
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_a_lender_ends_well_on_its_deadline():
    """Its result stands, so it is told; others are served from a copy of its input."""
    bench = ready(2)
    bench.submit(0, submission(0, large=True, hold=True, timeout=1.0))
    bench.submit(1, submission(0, large=True, sealed=False))
    bench.settle()
    assert bench.reports(0) == []
    bench.tick(1.0)
    assert bench.reports(0) == [(0, OK)]
    kept = [type(action).__name__ for action in bench.log[0]]
    assert kept.index("KeepInput") < kept.index("Report")


def test_a_lender_that_leaves_has_its_memory_back_first():
    """What it lent is copied before anything else, and still completed for the others."""
    bench = ready(2)
    bench.submit(0, submission(0, large=True, hold=True))
    bench.settle()
    bench.gone(0, reason="left", lives=True)
    names = [type(action).__name__ for action in bench.log[0]]
    assert names.count("KeepInput") == 1
    assert "Run" not in names
    bench.submit(1, submission(0, large=True))
    bench.settle()
    assert bench.reports(1) == [(0, OK)]


def test_what_a_dead_lender_lent_is_not_copied():
    """Nobody writes to it any more, and a copy would keep the others from the news."""
    bench = ready(2)
    bench.submit(0, submission(0, large=True, hold=True))
    bench.settle()
    bench.gone(0)
    assert bench.did(0, actions.KeepInput) == []
    bench.submit(1, submission(0, large=True))
    bench.settle()
    assert bench.reports(1) == [(0, OK)]


def test_deadlines_of_ended_ops_are_forgotten():
    """The daemon's memory does not grow with the calls that were made."""
    bench = ready(2)
    for seq in range(500):
        for rank in range(2):
            bench.submit(rank, submission(seq, timeout=1800.0), acked=seq)
        bench.settle()
    engine = bench.engines[0]
    assert len(engine._deadlines) + len(engine._stalls) < 300


def test_payloads_are_forgotten_when_the_op_has_ended():
    """What others sent is not kept until all have acknowledged."""
    bench = ready(2)
    all_reduce(bench)
    (session,) = bench.engines[0].joins.values()
    assert [op.payloads for op in session.ops.values()] == [[b"", b""]]


def test_other_bytes_under_the_same_number_are_refused():
    """A client that changes its mind is told so, and what it said first counts."""
    bench = ready(2)
    bench.submit(0, submission(0))
    other = submission(0)
    other.payload = bytes(len(other.payload) - 1) + b"!"
    bench.submit(0, other)
    (denied,) = bench.did(0, actions.Deny)
    assert "other bytes" in denied.message


def test_lenders_do_not_wait_for_each_other():
    """All lend: all are told."""
    bench = ready(3)
    all_reduce(bench, large=True, hold=True)
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


# --- stalls ---------------------------------------------------------------------------


def test_a_stall_is_explained_once_and_kills_nothing():
    """After ten seconds: which op waits for whom."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.tick(9.9)
    assert bench.did(0, actions.Warn) == []
    for _ in range(3):
        bench.tick(10.0)
    warn = bench.did(0, actions.Warn)
    assert [(a.group, a.seq, a.missing) for a in warn] == [("g", 0, "not submitted by: c")]
    bench.submit(2, submission(0))
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_an_idle_engine_wants_no_clock():
    """Nothing waits for a timer when nothing is open."""
    bench = ready(2)
    assert bench.engines[0].next_deadline is None
    bench.submit(0, submission(0, timeout=3.0))
    assert bench.engines[0].next_deadline == 3.0
