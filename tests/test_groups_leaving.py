"""A client dies or is replaced: which calls end, which complete, and who is spared."""

from __future__ import annotations

from groups_bench import Bench, ready, submission

from ringd.groups import actions
from ringd.groups.op import OK


def test_a_dead_client_ends_the_calls_it_has_no_part_in():
    """The error names the member."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.submit(1, submission(0))
    bench.settle()
    bench.gone(2)
    bench.settle()
    assert bench.reports(0) == [(0, "group_lost")]
    assert bench.message(0) == "the client of rank 2 on 'c' died"
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
    assert bench.engines[0].roll.groups["g"].local[0].session.formed
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
