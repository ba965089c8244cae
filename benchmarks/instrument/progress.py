"""How far a run is, and how long it will take still."""

from __future__ import annotations

import sys
import time
from typing import final


def clock_text(seconds: float) -> str:
    """Return *seconds* as minutes and seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"


def remaining(done: float, total: float, elapsed: float) -> float:
    """Return the seconds that the rest takes, if it goes on as it went.

    Args:
        done: Forecast seconds of what has been done.
        total: Forecast seconds of everything.
        elapsed: Seconds since the begin.
    """
    if done <= 0:
        return total
    # A forecast counts as much as a few seconds of experience, so the first step does not decide.
    pace = (elapsed + 5.0) / (done + 5.0)
    return max(0.0, total - done) * pace


@final
class Progress:
    """Counts forecast seconds, and writes to standard error; on a terminal always the same line."""

    def __init__(self, total: float) -> None:
        self.total = total
        self._done = 0.0
        self._began = time.monotonic()
        self._said = -1e9
        self._terminal = sys.stderr.isatty()

    def step(self, forecast: float, what: str) -> None:
        """Count a step that was forecast to take so many seconds; say what comes after *what*."""
        self._done += forecast
        now = time.monotonic()
        if now - self._said < (0.5 if self._terminal else 15.0):
            return
        self._said = now
        elapsed = now - self._began
        left = remaining(self._done, self.total, elapsed)
        share = min(1.0, self._done / self.total)
        line = f"{share:4.0%}, {clock_text(elapsed)} gone, about {clock_text(left)} left: {what}"
        end = "\r" if self._terminal else "\n"
        print(f"{line:<78}", end=end, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print *line* to standard output, above the line of progress."""
        if self._terminal:
            print(f"{'':<78}", end="\r", file=sys.stderr, flush=True)
        print(line, flush=True)
