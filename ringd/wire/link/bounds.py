"""How large and how long what another daemon says may be: each bound of the links, stated once.

What is out of bounds is not decoded (:mod:`ringd.wire.link.control`), so it is never believed,
passed on or written to disk; the state file has the same bounds (:mod:`ringd.ring.state`). What
this daemon says itself is brought within them as it is encoded.

Numbers that members count on from, such as a generation, need room behind the greatest one that
may be told: else a single lie would use them up. So one may be *told* up to :data:`MAX_COUNT`, but
is counted on from only up to :data:`COUNTED_ON`, unless this member has counted that far itself.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ringd.collective.call import (
    MAX_LOCAL_SIZE,
    MAX_PART_NAME,
    MAX_RANK,
    MAX_TAG,
    MAX_TEXT,
    MAX_WORD,
)
from ringd.wire.text import printable

COUNTED_ON = 1 << 61
"""The greatest number told by others that is counted on from: none honestly counts that far."""

MAX_COUNT = COUNTED_ON + (1 << 32)
"""The greatest generation, incarnation, version, epoch or attempt."""

NEARBY = 1 << 20
"""By how much a number may be ahead of this member's own, where both are beyond COUNTED_ON."""

MAX_SEQUENCE = 1 << 62
"""The greatest number of an op, floor or poll; a floor of that number is above all ops."""

MAX_MEMBERS = 64
MAX_RANKS = MAX_MEMBERS * MAX_LOCAL_SIZE
"""Of a group."""
MAX_CHANNELS = 65536
"""Of one program."""
MAX_ERROR = 300
"""Characters of an address, and of each error text that travels in a link state."""
MAX_INSTANCE = 1 << 62


def counted_on(told: int, own: int) -> bool:
    """Whether a number *told* by another member is counted on from, by one that has *own*."""
    return told <= max(COUNTED_ON, own + NEARBY)


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Sequence = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]
Distance = Annotated[int, msgspec.Meta(ge=-MAX_SEQUENCE, le=MAX_SEQUENCE)]
"""Between two of them."""
JoinId = Annotated[int, msgspec.Meta(ge=1)]
"""Up to 2**64 - 1, as MessagePack has no greater number."""
Member = Annotated[int, msgspec.Meta(ge=0, lt=MAX_MEMBERS)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=MAX_RANK)]
Tag = Annotated[int, msgspec.Meta(ge=0, le=MAX_TAG)]
Instance = Annotated[int, msgspec.Meta(ge=0, lt=MAX_INSTANCE)]
LocalRank = Annotated[int, msgspec.Meta(ge=0, lt=MAX_LOCAL_SIZE)]
LocalSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_LOCAL_SIZE)]

GroupName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PART_NAME)]
Code = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_WORD)]
Outcome = Annotated[str, msgspec.Meta(max_length=MAX_WORD)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Trouble = Annotated[str, msgspec.Meta(max_length=MAX_ERROR)]

JoinIds = Annotated[tuple[JoinId, ...], msgspec.Meta(max_length=MAX_RANKS)]
Places = Annotated[tuple[Member, ...], msgspec.Meta(max_length=MAX_RANKS)]
Counts = Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_MEMBERS)]


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Return *text* as logs and terminals may see it: short, and without control characters."""
    return text if len(text) <= limit and text.isprintable() else printable(text, limit)
