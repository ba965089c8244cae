"""Logging what happens: all of it, until it happens too often.

A link that comes and goes without end would fill a disk with lines that say the same. :data:`MANY`
lines are logged at once, and :data:`FEW` in each minute after that. What comes beyond is logged at
level ``debug``, and counted: a line after the minute says how many, and which was the last.
"""

from __future__ import annotations

from typing import Any, Literal

from structlog.typing import FilteringBoundLogger

from ringd.loop import Loop, Timer
from ringd.observe.allowance import Allowance

MANY = 40
FEW = 8

MINUTE = 60.0
"""Seconds."""


class PacedLog:
    """See the module's docstring; what is logged goes to *log*."""

    def __init__(self, log: FilteringBoundLogger, loop: Loop) -> None:
        self._log = log
        self._loop = loop
        self._allowance = Allowance.full(MANY, MINUTE / FEW, loop.now())
        self._last = ""
        self._report: Timer | None = None

    def info(self, event: str, **details: Any) -> None:
        """Log *event*, which is as it should be."""
        self._write("info", event, details)

    def warning(self, event: str, **details: Any) -> None:
        """Log *event*, which is not."""
        self._write("warning", event, details)

    def stop(self) -> None:
        """Tell of what was held back so far."""
        if self._report is not None:
            self._report.cancel()
            self._tell()

    def _write(
        self, level: Literal["info", "warning"], event: str, details: dict[str, Any]
    ) -> None:
        if self._allowance.take(self._loop.now()):
            (self._log.info if level == "info" else self._log.warning)(event, **details)
            return
        self._last = ": ".join(filter(None, (event, str(details.get("reason", "")))))
        self._log.debug(event, **details)
        if self._report is None:
            self._report = self._loop.call_later(MINUTE, self._tell)

    def _tell(self) -> None:
        self._report = None
        held_back, self._allowance.held_back = self._allowance.held_back, 0
        self._log.warning(
            "the ring comes and goes",
            held_back=held_back,
            last=self._last,
            reason='log.level = "debug" shows all; `ringd-cli trace` what happened lately',
        )
