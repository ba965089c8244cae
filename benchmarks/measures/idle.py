"""What a ready ring costs while nobody calls."""

from __future__ import annotations

import time

from instrument.counters import cpu_time, sleeps
from instrument.line_up import LineUp
from instrument.results import Results

SHARE = "idle: share of a core of a daemon"
WAKES = "idle: wake-ups of a daemon per second"
BEYOND = "idle: wake-ups of a daemon per second beyond heartbeats"

_HEARTBEAT = 1.0  # seconds; join.heartbeat's default
_LINKS = 2
_WAKES_OF_HEARTBEAT = 2
"""At each end of a link, when one end begins: its timer and an answer, or two of the three frames.
On a busy machine both ends begin, which doubles it: then more is counted as beyond than is."""


def measure(made: LineUp, seconds: float, results: Results) -> None:
    """Let the ring be idle for so many seconds, and keep the figures of its busiest daemon."""
    pids = made.rings["ringd"].pids
    before = [(cpu_time(pid), sleeps(pid)) for pid in pids]
    time.sleep(seconds)
    after = [(cpu_time(pid), sleeps(pid)) for pid in pids]
    shares, wakes = (
        max((late[i] - early[i]) / seconds for early, late in zip(before, after, strict=True))
        for i in (0, 1)
    )
    results.set_figure(SHARE, made.site.size, shares)
    results.set_figure(WAKES, made.site.size, wakes)
    known = _LINKS * _WAKES_OF_HEARTBEAT / _HEARTBEAT
    results.set_figure(BEYOND, made.site.size, max(0.0, wakes - known))
