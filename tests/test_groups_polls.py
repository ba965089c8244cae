"""A deadline passes: the others are asked, and all have the error or all the result."""

from __future__ import annotations

from groups_bench import Bench, all_reduce, ready, submission

from ringd.groups import actions
from ringd.groups.offers import Rules
from ringd.groups.op import OK


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
    assert bench.message(0) == bench.message(1)
    assert bench.message(0).endswith("the deadline of 2 s passed on 'a'; not submitted by: c")
    assert bench.message(2) == bench.message(0) + "; made here 2.0 s after the first one"
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
    bench.do(1, bench.engines[1].finished(gid, 1, 0, bench.now))
    bench.tick(1.0)
    bench.settle()
    for rank in (0, 2):
        bench.do(rank, bench.engines[rank].finished(gid, rank, 0, bench.now))
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
    bench.do(1, bench.engines[1].finished(gid, 1, 0, bench.now))
    assert bench.reports(1) == []
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, "deadline_exceeded")]] * 3
    assert len(bench.did(2, actions.Stop)) == 1


def apart(n, timeout=None):
    """Return engines that run a large call of a kind whose members may be through apart."""
    bench = ready(n, rules=Rules(ends_together=lambda _call: False))
    bench.compute = False
    for rank in range(n):
        due = timeout if rank == n - 1 else None
        bench.submit(rank, submission(0, large=True, timeout=due))
    bench.settle()
    return bench


def through(bench, rank):
    """The part of *rank* is through."""
    gid = bench.did(rank, actions.Run)[-1].gid
    bench.do(rank, bench.engines[rank].finished(gid, rank, 0, bench.now))


def test_a_member_that_is_through_first_has_no_result_before_all_are():
    """A root that has only to send, for instance; all complete when the last one is through."""
    bench = apart(3)
    for rank in (0, 1):
        through(bench, rank)
        bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[]] * 3
    through(bench, 2)
    assert bench.reports(2) == [(0, OK)]
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_a_deadline_before_all_are_through_ends_the_call_for_all():
    """It is met though others are through, and says where data is still on its way."""
    bench = apart(3, timeout=1.0)
    through(bench, 0)
    through(bench, 2)
    bench.settle()
    bench.tick(1.0)
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, "deadline_exceeded")]] * 3
    assert bench.message(2).endswith("data was still on its way to or from: b")


def test_a_break_before_all_are_through_has_it_run_again():
    """Whoever was through is so anew; one that had completed serves the others."""
    bench = apart(3)
    for rank in range(3):
        through(bench, rank)
    bench.step(0)  # b has heard of a, and c of b, but a and c of nobody else
    bench.step(1)
    bench.down()
    assert bench.reports(0) == bench.reports(2) == []
    bench.up()
    for rank in range(3):
        through(bench, rank)
    bench.settle()
    assert [bench.reports(rank) for rank in range(3)] == [[(0, OK)]] * 3


def test_an_overdue_call_is_asked_about_before_it_can_complete():
    """Its client may have decided alone meanwhile: nobody completes what nobody had completed."""
    bench = ready(2)
    bench.submit(0, submission(0, timeout=1.0))
    bench.down()
    bench.submit(1, submission(0))
    bench.tick(1.0)
    assert bench.reports(0) == []
    bench.up()
    assert [bench.reports(rank) for rank in range(2)] == [[(0, "deadline_exceeded")]] * 2


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
