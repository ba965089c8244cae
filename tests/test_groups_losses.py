"""What a client is told of a loss: in which order, and who is to blame."""

from __future__ import annotations

import pytest
from groups_bench import Bench, ready, submission

from ringd.groups import actions
from ringd.groups.seat import Before


@pytest.mark.parametrize("on_loss", ["wait", "fail"])
def test_a_loss_is_told_before_the_calls_that_it_ends(on_loss):
    """Else the client's next call, made at once, would be in the lost session and end as well."""
    bench = Bench(2)
    bench.up()
    bench.join_all(on_loss=on_loss)
    for seq in range(3):
        bench.submit(0, submission(seq, large=True))
    bench.settle()
    bench.log[0].clear()
    if on_loss == "wait":
        bench.do(1, bench.engines[1].detach("b", "died", bench.now))
        bench.settle()
    else:
        bench.down()
    told = [a for a in bench.log[0] if isinstance(a, (actions.TellLost, actions.Report))]
    assert [type(action) for action in told] == [actions.TellLost] + [actions.Report] * 3
    assert {action.code for action in told} == {"group_lost" if on_loss == "wait" else "peer_lost"}


DEATH = "the client of rank 1 on 'b' died"


def bereave(bench):
    """The client on b dies, and c learns of it; a does not yet."""
    bench.submit(0, submission(0, large=True))
    bench.submit(2, submission(0, large=True))
    bench.settle()
    bench.gone(1)
    bench.step(1)
    assert bench.did(2, actions.TellLost)[-1].message == DEATH


@pytest.mark.parametrize("reaction", ["joins anew", "joins anew with an older library", "dies"])
def test_who_left_first_is_to_blame_not_who_left_for_that(reaction):
    """Also where the ring breaks in between, so that the survivor's leaving is heard first."""
    bench = ready(3)
    bereave(bench)
    if reaction == "dies":
        bench.gone(2)
    elif reaction == "joins anew":
        bench.attach(2, 22, before=Before(12, DEATH))
    else:
        bench.attach(2, 22)
    bench.down()
    bench.up()
    assert [lost.message for lost in bench.did(0, actions.TellLost)] == [DEATH]
    assert bench.message(0) == DEATH


@pytest.mark.parametrize("first", ["client", "others"])
def test_a_survivor_says_who_left_first_to_its_restarted_daemon(first):
    """That daemon knows of no loss, and is asked for the survivor's former stay."""
    bench = ready(3)
    bereave(bench)
    bench.restart(1, 2)  # both, so that nobody else can tell
    if first == "client":
        bench.attach(2, 22, before=Before(12, DEATH))
    for rank, engine in enumerate(bench.engines):
        bench.do(rank, engine.ring_up(bench.now))
    while bench.links[0]:  # the survivor is asked before b's daemon is heard
        bench.step(0)
        bench.step(1)
    if first == "others":
        bench.attach(2, 22, before=Before(12, DEATH))
    bench.settle()
    assert bench.message(0) == DEATH


def test_one_that_leaves_for_reasons_of_its_own_is_named_with_them():
    """With on_loss="fail" a client goes though nobody died: the others learn who went, and why."""
    bench = Bench(2)
    bench.up()
    bench.attach(0, 10, on_loss="fail")
    bench.attach(1, 11)
    bench.settle()
    for rank in range(2):
        bench.submit(rank, submission(0, large=True))
    bench.down()
    bench.attach(0, 20)
    bench.up()
    assert bench.reports(1) == [(0, "group_lost")]
    assert bench.message(1) == (
        "the client of rank 0 on 'a' waits for nobody (on_loss=\"fail\"): "
        "the ring broke: link to b lost"
    )


def test_one_that_was_not_in_a_call_at_a_loss_hears_of_it_as_the_others_did():
    """With on_loss="fail" on all, its next call ends with PeerLost too, in the same words."""
    bench = Bench(2)
    bench.up()
    for rank in range(2):
        bench.attach(rank, 10 + rank, on_loss="fail")
    bench.settle()
    bench.submit(0, submission(0, large=True))
    bench.settle()
    bench.down()
    bench.attach(0, 20, on_loss="fail")
    bench.up()
    bench.submit(1, submission(0, large=True))
    assert [bench.reports(rank) for rank in range(2)] == [[(0, "peer_lost")]] * 2
    assert bench.message(0) == bench.message(1) == "the ring broke: link to b lost"


def test_one_that_leaves_before_its_part_is_done_is_itself_to_blame():
    """It had calls to make that the first one's death did not end."""
    bench = ready(3)
    for rank in (0, 1):
        for seq in range(2):
            bench.submit(rank, submission(seq, large=True))
    bench.submit(2, submission(0, large=True))
    bench.settle()
    bench.gone(1)
    bench.settle()
    assert bench.did(0, actions.TellLost)[-1].floor == 2
    bench.gone(2)
    bench.settle()
    assert bench.reports(0)[-1] == (1, "group_lost")
    assert bench.message(0) == "the client of rank 2 on 'c' died"


def test_one_that_comes_too_late_is_told_why():
    """Its place was given up while it was away; it hears what the others heard."""
    bench = ready(2, reattach=5.0)
    bench.submit(0, submission(0))
    bench.settle()
    bench.restart(1)
    bench.up()
    bench.tick(5.0)
    bench.settle()
    bench.attach(1, 11, session=(10, 11))
    assert bench.did(1, actions.Deny)[0].message == bench.message(0)


def test_one_that_dies_before_it_found_back_is_said_to_have_died():
    """Its daemon had restarted and did not know yet which session it belonged to."""
    bench = ready(3)
    bench.submit(0, submission(0))
    bench.submit(2, submission(0))
    bench.settle()
    bench.restart(1)
    bench.attach(1, 11)
    bench.gone(1)
    bench.attach(1, 21, client="b2")
    bench.up()
    assert [bench.message(rank) for rank in (0, 2)] == ["the client on 'b' died"] * 2
