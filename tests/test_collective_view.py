"""A communicator as one of its ranks sees it."""

from __future__ import annotations

import dataclasses

import pytest

from ringd.collective.view import View


def test_a_view_knows_its_place():
    """The ring closes: the last one's right neighbour is the first."""
    views = [View(("a", "b", "c"), rank) for rank in range(3)]
    assert [view.left for view in views] == [2, 0, 1]
    assert [view.right for view in views] == [1, 2, 0]
    assert [(view.name, view.size) for view in views] == [("a", 3), ("b", 3), ("c", 3)]


def test_who_is_alone_is_its_own_neighbour():
    """A ring of one."""
    view = View(("a",), 0)
    assert (view.left, view.right, view.size) == (0, 0, 1)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_view_is_one_of_its_ranks(rank):
    """Nobody looks on from outside."""
    with pytest.raises(ValueError, match=f"rank {rank} is not one of 2"):
        View(("a", "b"), rank)


def test_a_view_stays_as_it_is():
    """It may be shared."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        View(("a", "b"), 0).rank = 1
