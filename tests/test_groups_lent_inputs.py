"""Inputs that clients lend: told when nobody can need them, copied before they are given back."""

from __future__ import annotations

from groups_bench import all_reduce, ready, submission

from ringd.groups import actions
from ringd.groups.op import OK


def test_a_lender_is_told_when_nobody_can_need_its_input():
    """Its result stands earlier, but a break could still make others ask for the input."""
    bench = ready(3)
    bench.compute = False
    for rank in range(3):
        bench.submit(rank, submission(0, large=True, hold=rank == 0))
    bench.settle()
    gid = bench.did(0, actions.Run)[0].gid
    bench.do(0, bench.engines[0].finished(gid, 0, 0, bench.now))
    bench.do(1, bench.engines[1].finished(gid, 1, 0, bench.now))
    bench.settle()
    assert (bench.reports(0), bench.reports(1)) == ([], [(0, OK)])
    bench.do(2, bench.engines[2].finished(gid, 2, 0, bench.now))
    bench.settle()
    assert bench.reports(0) == [(0, OK)]


def test_lenders_do_not_wait_for_each_other():
    """All lend: all are told."""
    bench = ready(3)
    all_reduce(bench, large=True, hold=True)
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


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
    """Its result stands, so it is told, and that others may still need its input."""
    bench = ready(2)
    bench.submit(0, submission(0, large=True, hold=True, timeout=1.0))
    bench.submit(1, submission(0, large=True, sealed=False))
    bench.settle()
    assert bench.reports(0) == []
    bench.tick(1.0)
    assert bench.reports(0) == [(0, OK)]
    (report,) = bench.did(0, actions.Report)
    assert report.keep


def test_what_one_that_is_gone_had_lent_completes_for_the_others():
    """It left that as it was, or is dead; nobody copies it, which would keep others waiting."""
    bench = ready(2)
    bench.submit(0, submission(0, large=True, hold=True))
    bench.settle()
    bench.gone(0)
    bench.submit(1, submission(0, large=True))
    bench.settle()
    assert bench.reports(1) == [(0, OK)]
