"""How a daemon stands at one moment, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ringd.collective.view import Side
from ringd.observe.counters import Counters


@dataclass(frozen=True, slots=True)
class LinkReading:
    """One side's link; what it has carried is 0 while there is none."""

    peer: str
    """The neighbour's name."""
    up: bool
    round_trip: float | None = None
    """Seconds there and back at the last heartbeat; None before the first."""
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read whenever somebody asks; the rest is in :attr:`counters`."""

    version: str
    ring: str
    node: str
    rank: int
    started: float
    """Seconds since 1970."""
    cpu_seconds: float
    state: str
    """``forming``, ``ready`` or ``draining``."""
    generation: int
    incarnation: int
    members: Mapping[str, int]
    """How many members are in each state: ``self``, ``up``, ``down``, ``unknown``."""
    links: Mapping[Side, LinkReading]
    """Empty in a ring of one."""
    programs: int
    shared_memory: int
    """Bytes of programs' segments that the daemon has mapped."""
    waiting_calls: int
    running_calls: int
    oldest_call: float
    """Seconds for which the oldest of both has been open; 0 without one."""
    open_files: int
    open_files_limit: int
    disk_write: float
    """Seconds for which a write of the state file is under way, else those of the last one."""
    lost_log_lines: int
    counters: Counters
