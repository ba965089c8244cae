"""Who has connected to doors, and whether they may enter.

To find that out takes time that anybody on the machine can have it cost: the system goes through
all of its connections, of which any user can have many, and asking for a user's groups may take the
network. So all doors of one keeper together have a tenth of a second of the loop at once, and then
a fifth of its time; and what was said of a user is kept for a moment.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from ringd.host.tcptable import peer_user
from ringd.loop import Loop

BURST, SHARE = 0.1, 0.2
"""Seconds that looking at them may take at once; and then in each second."""

KEPT = 5.0
"""Seconds for which it is kept whether a user may enter."""

_MOST_KEPT = 256  # users


class Doorkeeper:
    """See the module's docstring.

    Args:
        loop: Where the doors are.
        may_enter: Whether the user of this number may connect. It is asked where the system tells
            who connects, which is on Linux.
    """

    def __init__(self, loop: Loop, may_enter: Callable[[int], bool]) -> None:
        self._loop = loop
        self._may_enter = may_enter
        self._known: dict[int, bool] = {}
        """By the user's number, what was said lately."""
        self._known_since = 0.0
        self._left = BURST  # seconds; below 0: what was taken too much
        self._left_at = loop.now()

    @property
    def rests_for(self) -> float:
        """Seconds for which nobody is to be let in yet; 0 or less: somebody may."""
        return self._left_at - self._left / SHARE - self._loop.now()

    def refusal(self, sock: socket.socket, port: int) -> str:
        """Return why whoever connected *sock* is turned away; empty if they are not."""
        begun = self._loop.now()
        try:
            uid = peer_user(sock)
            if uid is None or self._lets_in(uid):
                return ""
        except OSError as error:
            return f"who connected to port {port} cannot be found out: {error}"
        finally:
            now = self._loop.now()
            earned = SHARE * (now - self._left_at)
            self._left = min(BURST, self._left + earned) - (now - begun)
            self._left_at = now
        return f"user {uid} may not use port {port}"

    def _lets_in(self, uid: int) -> bool:
        now = self._loop.now()
        if now >= self._known_since + KEPT or len(self._known) >= _MOST_KEPT:
            self._known.clear()
            self._known_since = now
        if uid not in self._known:
            self._known[uid] = self._may_enter(uid)
        return self._known[uid]
