"""A way on which small packets get through and large ones do not: a *black hole*.

A router on the way has a smaller MTU and sends no ICMP. A link comes up over it, for handshakes are
small, and dies with the first tensor; again and again. From here it looks as if the neighbour were
lost each time. What points to it: the same process is linked again at once, and of what was sent to
it since, little was acknowledged and much was not. Only the side that sends the tensors can tell.
"""

from __future__ import annotations

import ipaddress

from ringd.host.tcp import large_ping

LARGE = 1200
"""Bytes that a packet may have nearly everywhere."""

LITTLE = 64 << 10
"""Bytes that small packets may have carried in the life of such a link."""

TWICE = 2
"""Losses in a row before the hint is given; one may be a pulled cable."""

IN_A_ROW = 10
"""Times ``join.lost_after`` between two losses in a row at most: it takes one to notice, and the
ring then forms and the program calls again."""


class BlackHole:
    """Looks at the right links as they are lost."""

    def __init__(self) -> None:
        self._instance = 0
        self._times = 0
        self.last = 0.0
        """When the last one was lost."""
        self.hint = ""
        """What that pointed to."""

    def lost(
        self,
        instance: int,
        address: str,
        *,
        explained: bool,
        sent: int,
        undelivered: int,
        now: float,
        lost_after: float,
    ) -> str:
        """Return what to look at after the loss of a right link; empty if nothing points there.

        Args:
            instance: The process that it led to.
            address: Where, as the link tells it.
            explained: Whether one of the two ended it, and said why.
            sent: Bytes handed to the system.
            undelivered: Those of them that were never acknowledged.
            now: When, on any clock that does not go backwards.
            lost_after: As in the config.
        """
        stuck = not explained and undelivered >= LARGE and sent - undelivered < LITTLE
        again = instance == self._instance and now - self.last <= IN_A_ROW * lost_after
        self._instance, self.last = instance, now
        self._times = (self._times if again else 0) + 1 if stuck else 0
        self.hint = ""
        if self._times >= TWICE:
            self.hint = (
                "perhaps small packets pass and large ones do not, as little was delivered several "
                f"times in a row: check the MTU on the way: {large_ping(_host(address))}"
            )
        return self.hint


def _host(address: str) -> str:
    """Return the host of an address such as ``"mini.local:5680 (10.0.0.2:5680)"``."""
    host = address.rpartition("(")[2].rstrip(")").rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "ADDRESS"
    return host
