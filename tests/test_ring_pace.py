"""How much of a large call is on its way at once, and what it depends on."""

from __future__ import annotations

import pytest

from ringd.net.smallcalls import LATELY, SmallCalls
from ringd.ring.pace import AT_EASE, bytes_on_way


@pytest.mark.parametrize(
    ("seconds", "alone", "beside"),
    [
        pytest.param(1e-4, AT_EASE, 250e3, id="next to it"),
        pytest.param(None, AT_EASE, 2.5e6, id="not known yet"),
        pytest.param(0.1, 250e6, 250e6, id="far away"),
    ],
)
def test_bytes_on_their_way(seconds, alone, beside):
    """A round trip's worth at 20 Gbit/s, and more only where nobody waits behind it."""
    assert bytes_on_way(seconds, shared=False) == alone
    assert bytes_on_way(seconds, shared=True) == pytest.approx(beside)


def test_small_calls_of_others_count_for_a_while():
    """A group's own do not hold its large calls back: those come after them."""
    small = SmallCalls()
    assert not small.beside(5, 0.0)
    small.group, small.at = 7, 100.0
    assert small.beside(5, 100.0 + LATELY / 2)
    assert not small.beside(7, 100.0 + LATELY / 2)
    assert not small.beside(5, 100.0 + 2 * LATELY)
