"""Logging what may repeat for ever, or be made up without end by strangers.

The same words are logged once. Words of one *cause* that differ all the same share an allowance:
:data:`BURST` lines at once, then one for every :data:`PAUSE` seconds that pass. What is held back
is counted, and the number logged with the next line of that cause.
"""

from __future__ import annotations

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from ringd.observe.allowance import Allowance

BURST = 4
"""Lines."""

PAUSE = 60.0
"""Seconds."""

_REMEMBERED = 256


class OnceLog:
    """See the module's docstring.

    Args:
        log: Where to.
        now: A clock, in seconds.
    """

    def __init__(self, log: FilteringBoundLogger, now: Callable[[], float]) -> None:
        self._log = log
        self._now = now
        self._said: set[tuple[str, ...]] = set()
        self._allowances: dict[str, Allowance] = {}

    def warning(self, event: str, *, cause: str, where: str, reason: str) -> None:
        """Log *event*; *cause* must be one of a bounded number, whatever strangers say."""
        words = (event, where, reason)
        if words in self._said:
            return
        now = self._now()
        key = f"{event}: {cause}"
        allowance = self._allowances.setdefault(key, Allowance.full(BURST, PAUSE, now))
        if not allowance.take(now):
            return
        if len(self._said) >= _REMEMBERED:
            self._said.clear()
        self._said.add(words)
        more = {"held_back": allowance.held_back} if allowance.held_back else {}
        allowance.held_back = 0
        self._log.warning(event, address=where, reason=reason, **more)

    def forget(self) -> None:
        """Log again what was logged before, within the allowances: circumstances have changed."""
        self._said.clear()
