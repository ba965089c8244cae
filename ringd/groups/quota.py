"""How much a member keeps of what others say of programs: their stays, and absent clients."""

from __future__ import annotations

from ringd.wire.link.control import Joined

STAY = 1024
"""Bytes that a stay of another member's program costs here, about; so does an absent client."""
PEER = 48
"""Bytes that each number of its session costs, about."""

MOST_HEARD = 16 << 20
"""Bytes of what one member says of its programs: some 16,000 stays."""
MOST_ABSENT = 8 << 20
"""Bytes of what is known of clients that have yet to come back to this restarted daemon."""


def cost(message: Joined) -> int:
    """Return what it costs to keep *message*."""
    return STAY + PEER * (len(message.session) + len(message.places) + len(message.members))
