"""How long to wait before the next attempt: a capped exponential with full jitter.

The jitter keeps a room full of machines that lost the same switch from dialing in step.
The floor of half the first wait keeps an unlucky draw from becoming a busy loop.
"""

from __future__ import annotations

from random import Random


class Backoff:
    """The waits between the attempts of one dialer.

    Args:
        first: Ceiling of the first wait, in seconds; more than zero.
        cap: Ceiling of every wait, in seconds; at least *first*.
        rng: Source of the jitter.

    Raises:
        ValueError: *first* is not positive, or *cap* is below it.
    """

    __slots__ = ("_cap", "_ceiling", "_first", "_rng")

    def __init__(self, first: float, cap: float, rng: Random) -> None:
        if not 0 < first <= cap:
            raise ValueError(f"a backoff needs 0 < first <= cap, not first={first}, cap={cap}")
        self._first = first
        self._cap = cap
        self._rng = rng
        self._ceiling = first

    def next(self) -> float:
        """Return the next wait in seconds: between ``first / 2`` and the current ceiling."""
        wait = self._rng.uniform(self._first / 2, self._ceiling)
        self._ceiling = min(self._cap, 2 * self._ceiling)
        return wait

    def reset(self) -> None:
        """Start over from the first wait; for a link that has been healthy for a while."""
        self._ceiling = self._first
