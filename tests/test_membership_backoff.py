"""Waits grow, are capped, are spread, and start over."""

from __future__ import annotations

from random import Random

import pytest

from ringd.net.backoff import Backoff


class Highest(Random):
    """Draws the top of every range."""

    def uniform(self, a, b):
        """Return *b*."""
        assert a <= b
        return b


class Lowest(Random):
    """Draws the bottom of every range."""

    def uniform(self, a, b):
        """Return *a*."""
        assert a <= b
        return a


def test_ceilings_double_up_to_the_cap():
    """The longest possible waits are first, twice, four times, ... and then the cap for ever."""
    backoff = Backoff(0.1, 2.0, Highest())
    assert [backoff.next() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_floor_is_half_the_first_wait():
    """The shortest possible wait never becomes a busy loop."""
    backoff = Backoff(0.1, 2.0, Lowest())
    assert {backoff.next() for _ in range(50)} == {0.05}


def test_reset_starts_over():
    """After a reset the ceiling is the first one again."""
    backoff = Backoff(0.1, 2.0, Highest())
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.next() == 0.1


def test_waits_are_spread_over_the_whole_range():
    """At the cap, waits fall in every quarter of the range: full jitter."""
    backoff = Backoff(0.1, 2.0, Random(7))
    for _ in range(10):
        backoff.next()
    quarters = {int(4 * (backoff.next() - 0.05) / 1.95) for _ in range(500)}
    assert quarters == {0, 1, 2, 3}


def test_many_attempts_do_not_overflow():
    """A dialer that fails for years still waits at most the cap."""
    backoff = Backoff(0.1, 2.0, Random(3))
    assert max(backoff.next() for _ in range(20_000)) <= 2.0


@pytest.mark.parametrize(("first", "cap"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_nonsense_is_refused(first, cap):
    """A wait of nothing, or a cap below the first wait, is an error."""
    with pytest.raises(ValueError, match="first <= cap"):
        Backoff(first, cap, Random(0))
