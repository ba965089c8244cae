"""A way on which small packets get through and large ones do not: a *black hole*.

Somewhere the packets may be only so large, and who sends larger ones is not told. A link comes up
over it, for handshakes are small, and dies with the first tensor; again and again. From here it
looks as if the neighbour were lost each time. What tells: the same process is linked again at once,
and of what was sent to it since, little was acknowledged and much was not. From the other end: it
falls silent as soon as it is linked.
"""

from __future__ import annotations

import ipaddress

from ringd.host.tcp import large_ping

LARGE = 1200
"""Bytes that a packet may have nearly everywhere."""

LITTLE = 64 << 10
"""Bytes that small packets may have carried in the life of such a link."""

TWICE = 2
"""Once is a cable that was pulled."""


class BlackHole:
    """Looks at the links on one side as they are lost."""

    def __init__(self) -> None:
        self._instance = 0
        self._times = 0

    def lost_right(self, instance: int, address: str, *, sent: int, undelivered: int) -> str:
        """Return what to look at after the loss of a right link; empty if nothing points there.

        Args:
            instance: The process that it led to.
            address: Where, as the link tells it.
            sent: Bytes handed to the system.
            undelivered: Those of them that were never acknowledged.
        """
        return self._lost(
            instance, address, stuck=undelivered >= LARGE and sent - undelivered < LITTLE
        )

    def lost_left(
        self,
        instance: int,
        address: str,
        *,
        heard: int,
        silent: bool,
        held: float,
        lost_after: float,
    ) -> str:
        """Return the same after the loss of a left link, from which the tensors come.

        Args:
            instance: The process that it led to.
            address: Where, as the link tells it.
            heard: Bytes that have come.
            silent: Whether it was lost as no more came for *lost_after* seconds.
            held: Seconds that it lasted.
            lost_after: As in the config.
        """
        stuck = silent and heard < LITTLE and held < 2 * lost_after
        return self._lost(instance, address, stuck=stuck)

    def _lost(self, instance: int, address: str, *, stuck: bool) -> str:
        again = instance == self._instance
        self._instance = instance
        self._times = (self._times if again else 0) + 1 if stuck else 0
        if self._times < TWICE:
            return ""
        return (
            "small packets pass and large ones do not, several times in a row: check the MTU on "
            f"the way: {large_ping(_host(address))}"
        )


def _host(address: str) -> str:
    """Return the host of an address such as ``"mini.local:5680 (10.0.0.2:5680)"``."""
    host = address.rpartition("(")[2].rstrip(")").rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "ADDRESS"
    return host
