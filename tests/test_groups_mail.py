"""What a rank tells the others: which way it goes, and when those beside it hear it."""

from __future__ import annotations

import pytest
from groups_bench import call, submission

from ringd.collective.view import View
from ringd.groups.actions import Broadcast, Relay, Report
from ringd.groups.engine import Engine
from ringd.groups.mail import Letter, Mail
from ringd.groups.op import OK
from ringd.groups.seat import Join
from ringd.groups.session import Part
from ringd.wire.link.control import Done, Joined, Poll

RING = tuple("abcde")
JOINED = Joined("g", 10, ())
POLL = Poll(7, completed=False)


def mail(member=0, size=5):
    """Return the mail of a member of a ring."""
    return Mail(View(RING[:size], member), [])


def view(places, rank):
    """Return the view of a rank on a ring of five."""
    return View(tuple(RING[place] for place in places), rank, places, 5)


def test_a_stay_is_announced_to_all_members_of_the_ring():
    """Also to those without a rank: they may get one. The last one is left of the sender."""
    sent = mail(member=2)
    sent.announce(JOINED, 4, beside=False)
    assert sent.out == [Broadcast(4, 0, JOINED, b"", 0, until=1)]
    assert not sent.beside


def test_a_stay_is_announced_beside_oneself_where_others_may_be():
    """A ring of one has no other members, but may have other programs."""
    sent = mail(size=1)
    sent.announce(JOINED, 4, beside=True)
    assert sent.out == []
    assert list(sent.beside) == [Letter(0, 4, 0, JOINED)]


@pytest.mark.parametrize(
    ("places", "rank", "until", "beside"),
    [
        ((1, 3), 0, 3, False),
        ((1, 3), 1, 1, False),
        ((0, 1, 4), 1, 0, False),
        ((0, 0, 3), 1, 3, True),
        ((0, 0, 3), 2, 0, False),
        ((2, 2), 0, None, True),
        ((2,), 0, None, False),
    ],
)
def test_what_is_for_a_session_ends_at_its_last_member(places, rank, until, beside):
    """And goes no way at all where nobody is."""
    own = view(places, rank)
    sent = mail(own.place)
    sent.broadcast(own, 4, 9, Done(1), b"bytes")
    expected = [] if until is None else [Broadcast(4, 9, Done(1), b"bytes", rank, until, "right")]
    assert sent.out == expected
    assert list(sent.beside) == [Letter(rank, 4, 9, Done(1), b"bytes")] * beside


def way_of_a_poll(places, asker):
    """Return in which order a poll of *asker* comes by the ranks, and which links it takes."""
    came_by, links, rank = [], [], asker
    while True:
        sent = mail(places[rank])
        sent.relay(view(places, rank), asker, 4, 9, POLL)
        if sent.beside:
            assert sent.out == []
            (letter,) = sent.beside
            assert letter == Letter(asker, 4, 9, POLL, b"", letter.to)
            rank = letter.to
        else:
            assert sent.out == [Relay(places[asker], 4, 9, POLL, asker)]
            member = (places[rank] + 1) % 5
            while member not in places:
                member = (member + 1) % 5
            links.append((places[rank], member))
            rank = min(there for there, place in enumerate(places) if place == member)
        came_by.append(rank)
        if rank == asker:
            return came_by, links


@pytest.mark.parametrize(
    ("places", "asker", "came_by"),
    [
        ((1, 3), 0, [1, 0]),
        ((0, 0, 3), 0, [1, 2, 0]),
        ((0, 0, 3), 2, [0, 1, 2]),
        ((2, 2, 2), 0, [1, 2, 0]),
        ((4, 0, 4, 2), 0, [2, 1, 3, 0]),
    ],
)
def test_a_poll_comes_by_each_rank_once_and_back(places, asker, came_by):
    """Those of one member one after the other, and then on to the next member."""
    assert way_of_a_poll(places, asker)[0] == came_by


@pytest.mark.parametrize("asker", [1, 2])
def test_a_poll_of_a_later_rank_of_its_member_comes_by_those_before_it_too(asker):
    """At the end of its way round it meets the first one there first."""
    came_by, links = way_of_a_poll((0, 0, 0, 3), asker)
    assert sorted(came_by) == [0, 1, 2, 3]
    assert came_by[-1] == asker
    assert links == [(0, 3), (3, 0)]


# --- in an engine ---------------------------------------------------------------------


def two_here(**kwargs):
    """Return an engine, alone in its ring, with two programs of a group; and what it asks for."""
    engine = Engine(view=View(("a",), 0))
    asked = engine.ring_up(0.0)
    for local_rank in range(2):
        join = Join("g", 10 + local_rank, part=Part(local_rank, 2), **kwargs)
        asked += engine.attach(f"program {local_rank}", join, 0.0)
    return engine, asked


def test_an_event_ends_with_all_letters_read():
    """Whoever is told of an outcome, or asks the engine anything, finds it settled."""
    engine, _ = two_here()
    assert not engine.roll.mail.beside
    asked = engine.submit("program 0", 10, submission(0), 0.0)
    assert not any(isinstance(action, Report) for action in asked)
    asked = engine.submit("program 1", 11, submission(0, what=call(shape=4)), 0.0)
    reports = [action for action in asked if isinstance(action, Report)]
    assert [(report.join_id, report.code) for report in reports] == [
        (11, "mismatch"),
        (10, "mismatch"),
    ]
    assert not engine.roll.mail.beside


def test_programs_of_one_member_need_no_link():
    """They meet and call with nothing sent."""
    engine, asked = two_here()
    for rank in range(2):
        asked += engine.submit(f"program {rank}", 10 + rank, submission(0), 0.0)
    (gid,) = engine.roll.by_gid
    for rank in range(2):
        asked += engine.finished(gid, rank, 0, 0.0)
    assert [action.code for action in asked if isinstance(action, Report)] == [OK, OK]
    assert not any(isinstance(action, (Broadcast, Relay)) for action in asked)
