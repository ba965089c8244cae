"""What programs may have of this daemon, by its settings and its machine."""

from __future__ import annotations

from fractions import Fraction

from ringd.border.accounts import USER_PART
from ringd.border.limits import Limits
from ringd.config.settings import IpcSettings
from ringd.groups.quota import MOST_HEARD, PEER, STAY
from ringd.host.machine import memory, share_of_memory
from ringd.wire.border.stream import LENGTH

_MEMORY_PER_CONNECTION = 8 << 20  # bytes: libzmq may take 2.2 MiB for one that floods
_MOST_CONNECTIONS = 8192
_LEAST_CONNECTIONS = 64
_SEGMENTS_PART = Fraction(7, 8)  # of the memory; the rest is for the daemon's own work
_MESSAGES_PART = Fraction(1, 8)


def limits(ipc: IpcSettings, members: int) -> Limits:
    """Return what programs may have, in a ring of *members*.

    Whatever is not set is at least so much that one program can have what one may.
    """
    budget = ipc.segment_budget
    if budget is None:
        budget = share_of_memory(least=2 * ipc.inline_limit)  # an input and a result
    connections = min(_MOST_CONNECTIONS, memory() // _MEMORY_PER_CONNECTION)
    return Limits(
        inline_limit=ipc.inline_limit,
        max_message=ipc.max_message,
        segment_budget=budget,
        window=ipc.window,
        connections=ipc.connections or max(connections, _LEAST_CONNECTIONS),
        segment_total=ipc.segment_total or max(int(_SEGMENTS_PART * memory()), _for_one(budget)),
        message_total=ipc.message_total
        or max(int(_MESSAGES_PART * memory()), _for_one(ipc.max_message + LENGTH.size)),
        groups=MOST_HEARD // (STAY + 2 * PEER * members),
    )


def _for_one(amount: int) -> int:
    """Return the total of which one user's part is *amount*."""
    return int(amount / USER_PART) + 1
