"""Channels: what one rank sends another one, as calls of two."""

from __future__ import annotations

import pytest
from groups_bench import call, ready, submission

from ringd.collective.view import View
from ringd.errors import GroupLost, PeerLost, Refused
from ringd.groups import actions
from ringd.groups.channels import Key, Opening, pair
from ringd.groups.seat import Before
from ringd.wire.link.control import Closed, Opened

KEY = Key(0, 1, 5)


@pytest.mark.parametrize(
    ("ring_size", "places", "sides"),
    [
        (2, (0, 1), ("right", "right")),
        (3, (0, 1), ("right", "left")),
        (3, (0, 2), ("left", "right")),
        (4, (1, 3), ("right", "right")),
        (5, (4, 0), ("right", "left")),
        (5, (2, 2), ("right", "right")),
    ],
)
def test_a_channel_takes_the_shorter_way(ring_size, places, sides):
    """From either end; to the right where both are as long."""
    names = tuple(f"m{place}" for place in places)
    views = [View(names, rank, places, ring_size) for rank in (0, 1)]
    ends = [pair(view, Key(0, 1, 0)) for view in views]
    assert [(end.rank, end.size, end.side) for end in ends] == [(0, 2, sides[0]), (1, 2, sides[1])]
    assert [end.until for end in ends] == [places[1], places[0]]
    assert [end.described() for end in ends] == [view.described() for view in views]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (Key(0, 3, 0), "rank 0 cannot send to rank 3 in a group of 3"),
        (Key(0, 0, 0), "rank 0 cannot send to itself"),
        (Key(1, 2, 0), "rank 0 has no part in what rank 1 sends to 2"),
        (Key(0, 1, -1), "a tag is a number from 0 to 32767, not -1"),
        (Key(0, 1, 32768), "a tag is a number from 0 to 32767, not 32768"),
    ],
    ids=str,
)
def test_what_is_no_channel_is_refused(key, text):
    """It says why."""
    bench = ready()
    open_end(bench, 0, key)
    (denied,) = bench.did(0, actions.Deny)
    assert (denied.join_id, denied.code, denied.message) == (100, Refused.code, text)


def open_end(bench, rank, key=KEY, *, number=100, watch=False):
    """Have the client of *rank* open its end, whose number is *number* and its rank."""
    opening = Opening(10 + rank, number + rank, key, watch=watch)
    bench.do(rank, bench.engines[rank].open(bench.names[rank], opening, bench.now))
    bench.settle()


def message(bench, rank, seq, **kwargs):
    """Have the client of *rank* hand over its part in message *seq*."""
    bench.submit(rank, submission(seq, now=bench.now, **kwargs), join_id=100 + rank)
    bench.settle()


def outcomes(bench, rank):
    """Return how the messages of *rank* ended."""
    reports = bench.did(rank, actions.Report)
    return [(a.submission.seq, a.code) for a in reports if a.join_id == 100 + rank]


def test_a_message_ends_when_both_have_asked():
    """Whoever comes first, and whoever opens first; the third rank has no part in it."""
    bench = ready()
    open_end(bench, 1)
    message(bench, 1, 0)
    open_end(bench, 0)
    assert outcomes(bench, 1) == []
    message(bench, 0, 0)
    message(bench, 0, 1)
    message(bench, 1, 1)
    assert [outcomes(bench, rank) for rank in range(2)] == [[(0, "ok"), (1, "ok")]] * 2
    assert bench.did(2, actions.Run) == []


def test_ends_that_differ_are_a_mismatch_for_both():
    """And the next message is unharmed."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
        message(bench, rank, 0, what=call(shape=3 + rank))
    for rank in (0, 1):
        message(bench, rank, 1)
    assert [outcomes(bench, rank) for rank in range(2)] == [[(0, "mismatch"), (1, "ok")]] * 2


def test_a_receiver_that_watches_is_told_what_has_come():
    """Of all messages that were ever sent; also of those that came before it asked."""
    bench = ready()
    open_end(bench, 0)
    open_end(bench, 1)
    message(bench, 0, 0)
    message(bench, 0, 1)
    open_end(bench, 1, watch=True)
    message(bench, 0, 2)
    told = [(a.join_id, a.count) for a in bench.did(1, actions.TellArrived)]
    assert told == [(101, 2), (101, 3)]
    assert bench.did(0, actions.TellArrived) == []


@pytest.mark.parametrize("asks", ["before", "again", "meanwhile"])
def test_a_receiver_that_waits_for_any_message_is_told_of_a_loss_at_once(asks):
    """It has no open call, and would learn of the break from those that had, long after it."""
    bench = ready(on_loss="fail")
    if asks != "meanwhile":
        open_end(bench, 1, watch=asks == "before")
    if asks != "before":
        bench.down()
        assert bench.did(1, actions.TellLost) == []
        open_end(bench, 1, watch=True)
    else:
        bench.down()
    lost = {(a.join_id, a.code, a.message) for a in bench.did(1, actions.TellLost)}
    assert lost == {(id_, PeerLost.code, "the ring broke: link to b lost") for id_ in (11, 101)}
    assert bench.did(0, actions.TellLost) == []  # which waits for nothing
    bench.up()
    bench.attach(1, 21, on_loss="fail")
    bench.settle()
    assert [a.code for a in bench.did(2, actions.TellLost)] == [PeerLost.code]


def test_a_channel_whose_other_end_has_left_cannot_be_opened_again():
    """Its end may be heard before that of the stay, which goes the other way round the ring."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
    engine = bench.engines[1]
    gid = engine.roll.seats[101].session.gid
    left = Closed(0, GroupLost.code, "the client of rank 0 on 'a' left the group")
    bench.do(1, engine.received(0, 0, gid, 0, left, b"", bench.now))
    open_end(bench, 1, number=200)
    denied = bench.did(1, actions.Deny)[-1]
    assert (denied.join_id, denied.code, denied.message) == (201, left.code, left.message)


@pytest.mark.parametrize("first", ["ring", "client"])
def test_who_joined_anew_beside_a_restarted_daemon_is_not_waited_for(first):
    """By who has joined anew, too, and has nothing of the former stay left but a message."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
    message(bench, 0, 0)
    bench.gone(2)
    bench.settle()
    bench.attach(0, 20, before=Before(10, "c died"))
    bench.settle()
    assert 10 not in bench.engines[0].roll.seats
    assert outcomes(bench, 0) == []
    bench.restart(1)
    if first == "ring":
        bench.up()
    bench.attach(1, 21, before=Before(11, "c died"))
    if first == "client":
        bench.up()
    bench.settle()
    assert outcomes(bench, 0) == [(0, GroupLost.code)]
    assert bench.message(0) == "c died"


def test_a_receiver_whose_message_has_come_waits_for_nothing():
    """What it takes next it will be given."""
    bench = ready(on_loss="fail")
    open_end(bench, 0)
    open_end(bench, 1, watch=True)
    message(bench, 0, 0)
    bench.engines[1].ring_down("link to a lost", bench.now)
    assert bench.did(1, actions.TellLost) == []


def test_a_channel_ends_with_the_stay_of_either_end():
    """What both have handed over completes; the rest fails, and says who left."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
    message(bench, 0, 0)
    message(bench, 1, 0)
    message(bench, 0, 1)
    bench.gone(1)
    bench.settle()
    assert outcomes(bench, 0) == [(0, "ok"), (1, "group_lost")]
    assert "the client of rank 1 on 'b' died" in bench.message(0)
    open_end(bench, 0, Key(0, 2, 0), number=200)
    denied = bench.did(0, actions.Deny)[-1]
    assert (denied.code, "died" in denied.message) == (GroupLost.code, True)


@pytest.mark.parametrize("waiter", [0, 1], ids=["sender", "receiver"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_waits_for_an_end_that_can_be_opened_no_more_is_told(waiter, when):
    """The other one's stay is over, and goes on with calls that wait for whoever waits for it."""
    bench = ready()
    other = 1 - waiter
    for rank in (other, 2):  # complete for rank 2, so that it is below the limit
        bench.submit(rank, submission(0, now=bench.now))
    bench.settle()
    if when == "before":
        open_end(bench, waiter)
        message(bench, waiter, 0)
    bench.gone(2)
    bench.settle()
    assert bench.engines[other].roll.seats[10 + other].calls.limit == 1
    if when == "after":  # its own daemon has yet to hear of that
        seat = bench.engines[waiter].roll.seats[10 + waiter]
        seat.calls.limit = None
        open_end(bench, waiter)
        message(bench, waiter, 0)
    assert outcomes(bench, waiter) == [(0, "group_lost")]
    assert "the client of rank 2 on 'c' died" in bench.message(waiter)
    bench.submit(waiter, submission(0, now=bench.now))
    bench.settle()
    for rank in (0, 1):
        reports = bench.did(rank, actions.Report)
        assert [a.code for a in reports if a.join_id == 10 + rank] == ["ok"]


def test_a_restarted_daemon_learns_of_its_channels_from_the_client():
    """What was under way goes on."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
    message(bench, 0, 0)
    session = bench.did(1, actions.TellSession)[-1]
    bench.restart(1)
    bench.attach(1, 11, session=session.session, expected=0)
    bench.up()
    open_end(bench, 1)
    message(bench, 1, 0)
    assert [outcomes(bench, rank)[-1] for rank in range(2)] == [(0, "ok")] * 2


def test_nothing_of_a_channel_is_left_when_its_ends_are_gone():
    """Neither of the two daemons, nor of the third, keeps anything."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
        message(bench, rank, 0)
    for rank in range(3):
        bench.gone(rank, reason="left the group")
        bench.settle()
    bench.tick(1)
    bench.settle()
    for engine in bench.engines:
        assert (engine.roll.seats, engine.roll.by_gid, engine.roll.groups) == ({}, {}, {})
    assert bench.freed() == [1] * len(bench.submissions)


def test_a_client_that_is_silent_in_a_channel_is_given_up_as_a_whole():
    """The other end hears of it, as it would of a client that did not come back."""
    bench = ready(reattach=5.0)
    for rank in (0, 1):
        open_end(bench, rank)
    message(bench, 0, 0)
    session = bench.did(1, actions.TellSession)[-1]
    bench.restart(1)
    bench.attach(1, 11, session=session.session, expected=0)
    bench.up()
    opening = Opening(11, 101, KEY, expected=1)
    bench.do(1, bench.engines[1].open("b", opening, bench.now))
    bench.settle()
    bench.tick(5.1)
    bench.settle()
    assert outcomes(bench, 0) == [(0, GroupLost.code)]
    assert "did not hand its calls over again" in bench.message(0)
    assert bench.did(1, actions.Deny)[-1].join_id == 11


@pytest.mark.parametrize(
    ("rank", "join_ids"), [(2, (10, 11)), (7, (10, 11)), (0, (10, 10)), (0, (10, -1))], ids=str
)
def test_the_opening_of_a_channel_that_cannot_be_is_dropped(rank, join_ids):
    """Whatever a confused member says of it."""
    bench = ready()
    opened = Opened(answer=False, group="g", join_ids=join_ids, place=1)
    bench.do(1, bench.engines[1].received(0, rank, 77, 0, opened, b"", bench.now))
    assert [a.reason for a in bench.did(1, actions.Dropped)] == ["a channel that cannot be"]


def test_there_is_no_channel_within_a_channel():
    """Nor before the client knows its peers."""
    bench = ready()
    open_end(bench, 0)
    opening = Opening(100, 300, KEY)
    bench.do(0, bench.engines[0].open("a", opening, bench.now))
    assert bench.did(0, actions.Deny)[-1].join_id == 300


def test_what_is_kept_beside_the_groups_for_a_channel_goes_with_it():
    """A client that goes on after losses would come to the most that it may have."""
    bench = ready()
    for rank in (0, 1):
        open_end(bench, rank)
    bench.gone(1)
    bench.settle()
    bench.attach(0, 20)
    bench.settle()
    assert [a.join_id for a in bench.did(0, actions.Forget)] == [100]
