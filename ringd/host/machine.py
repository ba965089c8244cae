"""How much memory and how many cores this process may have, and one client's share of memory."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

LEAST_SHARE = 64 << 20
"""Bytes that a client may have on the smallest machine."""

_CGROUP_OF_SELF = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Return the bytes that there are: the machine's, or fewer where a cgroup (Linux) says so."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min((physical, *_cgroup_limits()))


def available() -> int | None:
    """Return the bytes that programs can have without swapping; None where that is not said."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:  # macOS
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else min(kib << 10, memory())


def share_of_memory(least: int = 0) -> int:
    """Return the bytes of shared memory that one client may hold, at least *least*: half of all.

    A program needs the other half for what it reduces.
    """
    return max(memory() // 2, LEAST_SHARE, least)


def _cgroup_limits() -> list[int]:
    """Return the limits of this process's cgroup and of those around it; macOS has none."""
    limits: list[int] = []
    try:
        lines = _CGROUP_OF_SELF.read_text().splitlines()
    except OSError:
        return limits
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            base, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = base / path.lstrip("/")
        # In a container the path may be the machine's, and what is mounted here the container's.
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((folder / name).read_text()))
            if folder == base:
                break
    return limits
