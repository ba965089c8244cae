"""How long inputs, results and ops are kept: until nobody can need them, and no longer."""

from __future__ import annotations

import gc
import sys

from groups_bench import all_reduce, call, ready, submission

from ringd.groups import actions
from ringd.wire.link.control import Offer


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


def test_payloads_are_forgotten_when_the_op_has_ended():
    """What others sent is not kept until all have acknowledged."""
    bench = ready(2)
    all_reduce(bench)
    (seat,) = bench.engines[0].roll.seats.values()
    assert [op.payloads for op in seat.calls.ops.values()] == [[b"", b""]]


def test_deadlines_of_ended_ops_are_forgotten():
    """The daemon's memory does not grow with the calls that were made."""
    bench = ready(2)
    for seq in range(500):
        for rank in range(2):
            bench.submit(rank, submission(seq, timeout=1800.0), acked=seq)
        bench.settle()
    assert len(bench.engines[0].timing.deadlines) < 300


def test_a_deadline_keeps_no_call_that_has_ended():
    """It may be half an hour away, and a call may say the shapes of many tensors."""
    bench = ready(2)
    what = call()
    before = sys.getrefcount(what)
    for rank in range(2):
        bench.submit(rank, submission(0, timeout=8.0, what=what))
    bench.settle()
    all_reduce(bench, 1)
    for rank in range(2):
        bench.do(rank, bench.engines[rank].ack(bench.names[rank], 10 + rank, 2, bench.now))
    bench.settle()
    assert all(len(engine.timing.deadlines) for engine in bench.engines)
    for kept in (bench.log, bench.todo, bench.submissions):
        kept.clear()
    gc.collect()
    assert sys.getrefcount(what) == before


def test_an_offer_of_a_released_op_is_ignored():
    """Late repetitions open nothing."""
    bench = ready(2)
    all_reduce(bench)
    bench.tick(1.0)
    bench.settle()
    seat = bench.engines[0].roll.groups["g"].local[0]
    offer = Offer(call(), 0, eager=True, prompt=False, outcome="", message="")
    bench.do(0, bench.engines[0].received(1, 1, seat.session.gid, 0, offer, b"late", 0.0))
    assert (seat.ledger.released, seat.calls.ops) == (1, {})


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
        roll = engine.roll
        known = (roll.seats, roll.by_gid, roll.groups, roll.absences.absent)
        assert known == ({}, {}, {}, {})
    assert bench.freed() == [1, 1, 1]


def test_calls_that_fail_after_their_client_has_left_are_settled_too():
    """Nobody is there to acknowledge a mismatch; it must not keep the session."""
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
    assert [engine.roll.seats for engine in bench.engines] == [{}, {}, {}]


def test_a_deadline_is_watched_once():
    """However often the calls that are made meanwhile are looked at."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=3600.0))
    timing = bench.engines[0].timing
    for seq in range(1, 100):
        bench.submit(0, submission(seq, timeout=1.0, now=bench.now))
        bench.tick(10.0)
        bench.settle()
        assert len(timing.deadlines) == 1
    bench.tick(3600.0)
    bench.settle()
    assert len(bench.reports(0)) == 100
    assert not len(timing.deadlines)
