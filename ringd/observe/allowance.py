"""How often something may happen: a number at once, then so many in a time (a token bucket)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Allowance:
    """How often it may happen, and how often it was held back since that was last told."""

    burst: int
    """Times at once."""
    pause: float
    """Seconds in which one more is allowed."""
    left: float
    """Times allowed at the moment :attr:`since`."""
    since: float
    held_back: int = 0

    @classmethod
    def full(cls, burst: int, pause: float, now: float) -> Allowance:
        """Return one of which nothing is used up."""
        return cls(burst, pause, burst, now)

    def take(self, now: float) -> bool:
        """Return whether it may happen *now*; count it if not."""
        self.left = min(self.burst, self.left + (now - self.since) / self.pause)
        self.since = now
        if self.left < 1:
            self.held_back += 1
            return False
        self.left -= 1
        return True
