"""How much of a large call is on its way to a neighbour at once.

By itself the system takes many MiB, and each small call of another group waits behind them. So
where all members send as they receive, they keep pace (``Transfer.keep_pace``), more closely while
there are such calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LATELY = 0.05
"""Seconds after a small call in which another one may follow."""

AT_EASE = 4 << 20
"""Bytes on their way while nobody else waits. With a quarter of it, four members on two cores
waited for each other more often, and took up to a fifth longer for 64 MiB."""

FASTEST = 2.5e9
"""Bytes per second (20 Gbit/s) of which a round trip's worth is on its way in any case. As chunks
take half of one, and less than a heartbeat that wakes two daemons up, that is room for twice as
fast a link, or for what else holds a chunk up."""

UNKNOWN = 1e-3
"""Seconds of a round trip that was not measured yet."""


def bytes_on_way(round_trip: float | None, *, shared: bool) -> float:
    """Return how many bytes of a call are to be on their way, beside a chunk that is worked on.

    Args:
        round_trip: Seconds there and back, the fewest that were measured; None: none were.
        shared: Whether small calls of another group go the same way.
    """
    flight = (UNKNOWN if round_trip is None else round_trip) * FASTEST
    return flight if shared else max(flight, AT_EASE)


@dataclass(slots=True)
class SmallCalls:
    """Those whose tensors come in messages, as far as they have gone by here."""

    group: int = 0
    """The session of the last one."""
    at: float = -math.inf
    """When that was, on the loop's clock."""

    def beside(self, group: int, now: float) -> bool:
        """Whether there have been some lately, of another session than *group*."""
        return self.group != group and now - self.at < LATELY
