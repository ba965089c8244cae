"""How much memory a client keeps, so that the next call finds it warm; time is passed in.

The working set is the most that calls under way had at the same time, inputs and results, in the
last five seconds in which there was a call (a program may compute for a minute between its steps).

* While calls are made, 2.5 times the working set is kept.
* After 5 s without a call, 1.2 times.
* After a minute without one, the last ones say nothing of the next: nothing.

What is in use beyond that, such as users' arrays, is kept in any case, with a little room.
"""

from __future__ import annotations

import math
from collections import deque

BUSY_SHARE = 2.5
IDLE_SHARE = 1.2
QUIET = 5.0
"""Seconds without a call after which a program is idle."""
FORGET = 60.0
"""Seconds without a call after which its working set is forgotten."""
ROOM = 1 << 20
"""Bytes that are always kept beyond what is in use: less is not worth giving back."""
_SECONDS = 5


class Retention:
    """Remembers the working set."""

    def __init__(self) -> None:
        self._peaks: deque[int] = deque((0,), maxlen=_SECONDS)
        self._second = -1
        self._last = -math.inf

    def note(self, under_way: int, now: float) -> None:
        """A call was made; the calls under way now have *under_way* bytes."""
        self._last = now
        second = int(now)
        if second != self._second:
            self._second = second
            self._peaks.append(under_way)
        elif under_way > self._peaks[-1]:
            self._peaks[-1] = under_way

    def limit(self, used: int, now: float) -> int:
        """Return how many bytes to keep at most, of which *used* are in use."""
        idle = now - self._last
        share = BUSY_SHARE if idle < QUIET else IDLE_SHARE if idle < FORGET else 0
        return max(int(share * max(self._peaks)), int(IDLE_SHARE * used), used + ROOM)

    def next_look(self, now: float, *, more: bool, held: bool) -> float | None:
        """Return the seconds until there may be something to give back; None if there will not.

        Time alone lowers :meth:`limit` twice.

        Args:
            now: the time.
            more: blocks were taken or came back since the last look, and more of them may.
            held: some are in use, and may come back, which nothing tells. The longer a program
                has been idle, the less often it is woken to look for that.
        """
        idle = now - self._last
        steps = [step - idle for step in (QUIET, FORGET) if idle < step]
        if more:
            steps.append(QUIET)
        elif held:
            steps.append(min(max(idle, QUIET), FORGET))
        return min(steps, default=None)
