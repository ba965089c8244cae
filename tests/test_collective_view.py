"""A communicator as one of its ranks sees it."""

from __future__ import annotations

import dataclasses

import pytest

from ringd.collective.view import View


def views(places, ring_size, side="right"):
    """Return the view of each rank of a group whose ranks are on *places*."""
    names = tuple("abcdefgh"[place] for place in places)
    return [View(names, rank, places, ring_size, side) for rank in range(len(places))]


def ways(views):
    """Return by rank the next member, and the last one."""
    return [(view.next, view.until) for view in views]


def test_a_view_knows_its_place():
    """The ring closes: the member after the last one is the first, and all ends before oneself."""
    views = [View(("a", "b", "c"), rank) for rank in range(3)]
    assert ways(views) == [(1, 2), (2, 0), (0, 1)]
    assert [(view.name, view.size) for view in views] == [("a", 3), ("b", 3), ("c", 3)]


def test_a_view_has_a_rank_on_each_member_unless_it_says_more():
    """The group that covers the whole ring, with one program on each member."""
    view = View(("a", "b", "c"), 1)
    assert (view.places, view.place, view.ring_size, view.here) == ((0, 1, 2), 1, 3, (1,))
    assert view == View(("a", "b", "c"), 1, (0, 1, 2), 3, "right")


def test_who_is_alone_is_its_own_neighbour():
    """A ring of one, and the only program of a group in a larger one."""
    assert ways([View(("a",), 0)]) == [(0, 0)]
    assert ways(views((2,), 5)) == [(2, 2)]
    assert [view.size for view in views((2,), 5)] == [1]


def test_members_without_ranks_are_passed_over():
    """The next member is the next one with a rank, however far it is."""
    assert ways(views((1, 3), 5)) == [(3, 3), (1, 1)]
    assert ways(views((0, 1, 4), 6)) == [(1, 4), (4, 0), (0, 1)]


def test_what_goes_left_meets_the_members_the_other_way_round():
    """Next and last change places where there are three."""
    assert ways(views((0, 1, 4), 6, "left")) == [(4, 1), (0, 4), (1, 0)]
    assert ways(views((1, 3), 5, "left")) == [(3, 3), (1, 1)]


def test_programs_of_a_member_are_here_together():
    """The next member is another one, unless all are here; those here have an order."""
    several = views((0, 0, 2, 2, 2), 3)
    assert [view.here for view in several] == [(0, 1)] * 2 + [(2, 3, 4)] * 3
    assert [view.next_here for view in several] == [1, None, 3, 4, None]
    assert ways(several) == [(2, 2)] * 2 + [(0, 0)] * 3
    assert ways(views((1, 1), 3)) == [(1, 1)] * 2
    assert [view.here for view in views((1, 1), 3)] == [(0, 1)] * 2


def test_ranks_may_be_in_another_order_than_the_members():
    """Messages go round by members all the same."""
    shuffled = views((2, 0, 2, 1), 3)
    assert ways(shuffled) == [(0, 1), (1, 2), (0, 1), (2, 0)]
    assert [view.here for view in shuffled] == [(0, 2), (1,), (0, 2), (3,)]
    assert [view.next_here for view in shuffled] == [2, None, None, None]
    assert [view.name for view in shuffled] == ["c", "a", "c", "b"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("places", [(0,), (3, 0), (0, 0, 4), (4, 2, 2, 0), (1, 2, 3, 0, 4)])
def test_from_next_to_next_all_members_are_met_up_to_the_last(places, side):
    """Once each, whatever the ranks' order is."""
    of_member = {view.place: view for view in views(places, 5, side)}
    for start, first in of_member.items():
        met, here = [start], first
        while here.next != start:
            here = of_member[here.next]
            met.append(here.place)
        assert sorted(met) == sorted(of_member)
        assert met[-1] == first.until


def test_a_rank_is_named_beside_its_member_where_that_has_others():
    """A machine's name says who it is as long as it has one program."""
    view = View(("a", "a", "b"), 0, (0, 0, 1), 2)
    assert view.described() == ["a (rank 0)", "a (rank 1)", "b"]
    assert View(("a", "b"), 0).described() == ["a", "b"]


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_view_is_one_of_its_ranks(rank):
    """Nobody looks on from outside."""
    with pytest.raises(ValueError, match=f"rank {rank} is not one of 2"):
        View(("a", "b"), rank)


@pytest.mark.parametrize(
    ("places", "ring_size"), [((0,), 2), ((0, 1, 2), 3), ((0, 2), 2), ((-1, 0), 2), ((0, 1), 1)]
)
def test_each_rank_is_on_a_member_of_the_ring(places, ring_size):
    """One place for each rank, and no other places."""
    with pytest.raises(ValueError, match="2 ranks cannot be on members"):
        View(("a", "b"), 0, places, ring_size)


def test_a_view_stays_as_it_is():
    """It may be shared."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        View(("a", "b"), 0).rank = 1
