"""How much of a large call is on its way to a neighbour at once.

By itself the system takes many MiB, and each small call of another group waits behind them. So
where all members send as they receive, they keep pace (``Transfer.keep_pace``), more closely while
there are such calls.
"""

from __future__ import annotations

AT_EASE = 8 << 20
"""Bytes on their way while nobody else waits. In single runs four members on two cores took a tenth
longer for 64 MiB with half of it, and a fifth with an eighth; with it 175 ms, and 159 unbounded."""

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
