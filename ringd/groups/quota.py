"""How much a member keeps of what others say: each table that they can fill has a quota."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ringd.wire.link.control import Joined

STAY = 1024
"""Bytes that a stay of another member's program costs here, about; so does an absent client."""
PEER = 48
"""Bytes that each number of its session costs, about."""

MOST_HEARD = 32 << 20
"""Bytes of what one member says of its programs: some 30,000 stays of them."""
MOST_ABSENT = 8 << 20
"""Bytes of what is known of clients that have yet to come back to this restarted daemon."""


def cost(message: Joined) -> int:
    """Return what it costs to keep *message*."""
    return STAY + PEER * (len(message.session) + len(message.places) + len(message.members))


@dataclass(slots=True)
class Quota:
    """Bytes that a table may have.

    What is taken out of the table is not told of: it is counted anew once the quota seems used up.
    """

    most: int
    _counted: int = 0
    """At most so much is in use."""

    def admits(self, cost: int, held: Iterable[int]) -> bool:
        """Whether there is room for *cost* bytes beside those *held*, which are then counted."""
        if self._counted + cost > self.most:
            self._counted = sum(held)
        if self._counted + cost > self.most:
            return False
        self._counted += cost
        return True
