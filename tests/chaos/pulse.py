"""How late this process's threads are woken: the machine's share of every wait.

On a machine with more processes than cores, and with the interpreter's lock held by another
thread, a wake-up is late by itself. A thread that does nothing but sleep shows by how much.
"""

from __future__ import annotations

import threading
import time
from collections import deque

BEAT = 0.025
"""Seconds between two wake-ups."""

KEPT = 120
"""Beats that are remembered."""

LATE = 0.002
"""Seconds; what is less is not told."""


class Pulse:
    """A thread that sleeps, and notes how late it was woken."""

    def __init__(self) -> None:
        self._beats: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._due = time.monotonic() + BEAT
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT)
            now = time.monotonic()
            self._beats.append((self._due, now - self._due))
            self._due = now + BEAT

    def told(self) -> str:
        """Return the late wake-ups of the last seconds as ``DUE:LATENESS,...``, or ``-``."""
        beats = [*self._beats, (self._due, time.monotonic() - self._due)]
        return ",".join(f"{due:.4f}:{late:.4f}" for due, late in beats if late > LATE) or "-"


def lateness(told: str, since: float, until: float) -> float:
    """Return the seconds by which the latest wake-up due in that time was late."""
    beats = [beat.split(":") for beat in told.split(",")] if told != "-" else []
    found = [
        min(float(late), until - since)
        for due, late in beats
        if float(due) <= until and float(due) + float(late) >= since
    ]
    return max(found, default=0.0)
