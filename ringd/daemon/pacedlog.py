"""Logging what happens: all of it, until it happens too often.

A link that comes and goes without end would fill a disk with lines that say the same. In a minute
:data:`MANY` lines are logged; what comes beyond is logged at level ``debug``, and counted: the
minute's last line says how many there were, and what was the last. As long as that goes on, a
minute has :data:`FEW`.
"""

from __future__ import annotations

from typing import Any, Literal

from structlog.typing import FilteringBoundLogger

from ringd.net.loop import Loop, Timer

MANY = 40
FEW = 8

MINUTE = 60.0
"""Seconds."""


class PacedLog:
    """See the module's docstring; what is logged goes to *log*."""

    def __init__(self, log: FilteringBoundLogger, loop: Loop) -> None:
        self._log = log
        self._loop = loop
        self._limit = MANY
        self._lines = 0
        self._held_back = 0
        self._last = ""
        self._minute: Timer | None = None

    def info(self, event: str, **details: Any) -> None:
        """Log *event*, which is as it should be."""
        self._write("info", event, details)

    def warning(self, event: str, **details: Any) -> None:
        """Log *event*, which is not."""
        self._write("warning", event, details)

    def stop(self) -> None:
        """Say what is still to be said of this minute; nothing is counted any more."""
        if self._minute is not None:
            self._minute.cancel()
            self._end_minute()

    def _write(
        self, level: Literal["info", "warning"], event: str, details: dict[str, Any]
    ) -> None:
        if self._minute is None:
            self._minute = self._loop.call_later(MINUTE, self._end_minute)
        if self._lines < self._limit:
            self._lines += 1
            (self._log.info if level == "info" else self._log.warning)(event, **details)
            return
        self._held_back += 1
        self._last = ": ".join(filter(None, (event, str(details.get("reason", "")))))
        self._log.debug(event, **details)

    def _end_minute(self) -> None:
        self._minute = None
        held_back, self._held_back, self._lines = self._held_back, 0, 0
        self._limit = FEW if held_back else MANY
        if held_back:
            self._log.warning(
                "the ring comes and goes",
                held_back=held_back,
                last=self._last,
                reason='log.level = "debug" shows all; `ringd-cli trace` what happened lately',
            )
