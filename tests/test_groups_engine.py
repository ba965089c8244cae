"""Calls of a group, step by step: when they complete, what a difference does, who is waited for."""

from __future__ import annotations

import pytest
from groups_bench import Bench, all_reduce, call, ready, submission

from ringd.collective.call import MAX_TEXT
from ringd.errors import DeadlineExceeded
from ringd.groups import actions
from ringd.groups.op import OK
from ringd.groups.words import differences
from ringd.wire.link.control import Offer


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


def test_a_call_that_is_told_again_is_marked():
    """A client that may have missed how its call ended hears it again, as something not new."""
    bench = Bench(2)
    bench.join_all()
    bench.up()
    call = submission(0)
    bench.submit(0, call)
    bench.submit(0, call)  # not ended yet
    bench.submit(1, call)
    bench.settle()
    bench.submit(0, call)
    bench.submit(0, call)
    assert bench.reports(0) == [(0, OK)] * 3
    assert [a.again for a in bench.did(0, actions.Report)] == [False, True, True]


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
    calls = [call(rank, f"{rank:03}" * 80) for rank in range(64)]
    text = differences("op 7 of group 'g'", calls, names, "")
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
    assert [e.roll.groups["g"].local[0].session.counts for e in bench.engines] == [[0, 4, 1]] * 3


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


def test_an_engine_says_when_it_wants_the_clock_sooner():
    """Who drives it need not look at that after each event."""
    said = []
    bench = ready(2, sooner=lambda: said.append(bench.engines[0].next_deadline))
    del said[:]
    for seq, (timeout, expected) in enumerate([(20.0, [10.0]), (5.0, [5.0]), (7.0, [])]):
        bench.submit(0, submission(seq, timeout=timeout))
        assert said == expected
        del said[:]


def test_each_stall_is_explained_in_its_own_time():
    """Calls are looked at together, each once it has waited for long; deadlines pass meanwhile."""
    bench = ready(2)
    bench.submit(0, submission(0))
    bench.tick(6.0)
    bench.submit(0, submission(1))
    bench.submit(0, submission(2, timeout=7.0, now=bench.now))
    assert bench.engines[0].next_deadline == 10.0
    said = []
    for expected in (10.0, 13.0, 16.0):
        bench.tick(expected - bench.now)
        bench.settle()
        said.append([a.seq for a in bench.did(0, actions.Warn)])
    assert said == [[0], [0], [0, 1]]
    assert bench.reports(0) == [(2, DeadlineExceeded.code)]
    bench.tick(1.0)
    assert bench.engines[0].next_deadline is None


def test_an_idle_engine_wants_no_clock():
    """Nothing waits for a timer when nothing is open."""
    bench = ready(2)
    assert bench.engines[0].next_deadline is None
    bench.submit(0, submission(0, timeout=3.0))
    assert bench.engines[0].next_deadline == 3.0
