"""Tables of link states agree, whatever the order in which news arrives."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest

from ringd.membership.linkstate import LinkTable, is_newer
from ringd.wire.link.control import LinkState


def up(rank, *, incarnation=1, version=1, **changes):
    """Return the state of a member with both links up, but for *changes*."""
    state = LinkState(
        rank=rank,
        incarnation=incarnation,
        version=version,
        left_up=True,
        right_up=True,
        generation=0,
        address="",
    )
    return msgspec.structs.replace(state, **changes)


def table_of(*states, size=3):
    """Return a table that has heard *states*."""
    table = LinkTable(size)
    table.merge(states)
    return table


def test_order_of_news_does_not_matter():
    """Every order of the same news ends in the same table, also for twins of one version."""
    news = [
        up(0, version=2),
        up(0, version=2, left_error="its older self"),
        up(0, version=1, left_up=False),
        up(0, incarnation=2, version=1, right_up=False),
        up(0, incarnation=2, version=1),
    ]
    ends = {table_of(*order).known() for order in permutations(news)}
    assert ends == {(news[4],)}


def test_newer_is_a_strict_order():
    """Of two states that differ exactly one is newer; none is newer than itself."""
    states = [up(0, version=v, left_error=e) for v in (1, 2) for e in ("", "x")]
    for a in states:
        for b in states:
            assert is_newer(a, b) + is_newer(b, a) == (a != b)


def test_only_news_is_passed_on():
    """What was known already is not in the merge's result."""
    table = table_of(up(0))
    merge = table.merge([up(0), up(1)])
    assert merge.changed == (up(1),)
    assert table.merge([up(0), up(1)]).changed == ()


@pytest.mark.parametrize(
    ("state", "moves"),
    [
        (up(0, version=2, address="elsewhere:1"), False),
        (up(0, version=2, draining=True), False),
        (up(0, version=2, generation=9), False),
        (up(0, version=2, epoch=1), True),
        (up(0, version=2, epoch=1, left_up=False), True),
        (up(0, incarnation=2), True),
    ],
)
def test_what_ends_a_ring(state, moves):
    """A flap, also one seen only in its end, and a new life end a ring; other news does not."""
    merge = table_of(up(0), up(1), up(2)).merge([state])
    assert (merge.moved is not None) == moves


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"left_up": False}, "not linked to both neighbours yet"),
        ({"right_up": False, "right_error": "refused"}, "refused"),
        ({"disk_error": "state file: disk full"}, "state file: disk full"),
        ({"left_error": "lost", "right_error": "refused"}, "lost; refused"),
        (
            {"draining": True},
            "shutting down, or drained by its operator (`ringd-cli resume` there ends that)",
        ),
    ],
)
def test_says_who_is_missing_and_why(change, why):
    """One member that is not fit keeps the ring from forming, and is named with its reason."""
    table = table_of(up(0), up(1), up(2))
    assert table.all_up()
    table.merge([up(1, version=2, **change)])
    assert not table.all_up()
    assert table.missing() == {1: why}
    table.merge([up(1, version=3)])
    assert table.all_up()


def test_reachable_ends_at_links_that_either_end_calls_down():
    """News crosses only links that both ends call up."""
    table = table_of(up(0), up(1, right_up=False), up(2), up(3), up(4, left_up=False), size=5)
    assert table.reachable(0) == {0, 1, 4}
    assert table.reachable(2) == {2, 3}
    assert table_of(up(0), size=1).reachable(0) == {0}


def test_complaints_come_from_the_neighbours():
    """What is wrong with a member is what its neighbours say; its own word counts for its disk."""
    table = table_of(up(0, right_up=False, right_error="no"), up(1), up(2, disk_error="full"))
    assert [table.complaint(rank) for rank in range(3)] == ["", "no", "full"]
    table.merge([up(0, version=2), up(2, version=2, left_up=False, left_error="lost")])
    assert [table.complaint(rank) for rank in range(3)] == ["", "lost", ""]
