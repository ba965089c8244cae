"""Where ranks are, and how their arrays are put together."""

import numpy as np
import pytest

from ringd.collective.layout import Layout
from ringd.collective.spread import Segment, Spread, joined


def test_ranks_are_where_they_are():
    """The machines in ring order, the ranks of each rising; members without a rank do not count."""
    layout = Layout.of((5, 2, 8, 2, 5, 2), 5)
    assert layout == Layout(((1, 3, 5), (0, 4), (2,)), 1)
    assert layout.local == (0, 4)
    assert layout.order == (1, 3, 5, 0, 4, 2)
    assert layout.size == 6
    assert [layout.machine_of(rank) for rank in range(6)] == [1, 0, 2, 0, 1, 0]
    assert Layout.of(range(4), 3) == Layout(((0,), (1,), (2,), (3,)), 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout.of((0, 2), 1), "no rank is on member 1: the ranks are on 0, 2"),
        (lambda: Layout(((0,), (1,)), 2), "machine 2 is not one of 2"),
        (lambda: Layout(((0,), (2,)), 0), "do not have every rank once"),
        (lambda: Layout(((0,), (0,)), 0), "do not have every rank once"),
        (lambda: Layout(((0,), ()), 0), "do not have every rank once"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(make, message):
    """A machine without ranks takes no part; a rank has one place."""
    with pytest.raises(ValueError, match=message):
        make()


def test_segments_are_one_line():
    """Joined where they go on from each other; cut where a range meets their edges."""
    assert joined(
        [Segment(0, 3, (0,)), Segment(3, 5, (0,)), Segment(5, 5, (0,)), Segment(5, 6, (1,))]
    ) == (Segment(0, 5, (0,)), Segment(5, 6, (1,)))
    first, second = np.arange(10), np.arange(100, 110)
    spread = Spread(
        [first, second], [Segment(2, 4, (0,)), Segment(0, 3, (1,)), Segment(9, 10, (0,))]
    )
    assert len(spread) == 6
    assert spread.whole is None
    cut = [(at, [array.tolist() for array in arrays]) for at, arrays in spread.cut(1, 6)]
    assert cut == [
        (slice(0, 1), [[3]]),
        (slice(1, 4), [[100, 101, 102]]),
        (slice(4, 5), [[9]]),
    ]
    assert spread.cut(2, 2) == []
    alike = Spread([first, second])
    assert alike.alike == 2
    assert [[a.tolist() for a in arrays] for _, arrays in alike.cut(3, 5)] == [[[3, 4], [103, 104]]]
    assert len(Spread([first], [])) == 0
