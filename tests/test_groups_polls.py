"""A deadline passes: the others are asked, and all have the error or all the result."""

from __future__ import annotations

from groups_bench import Bench, all_reduce, ready, submission

from ringd.groups import actions
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
