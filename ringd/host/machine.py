"""How much memory and how many cores this process may have, and one client's share of memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LEAST_SHARE = 64 << 20
"""Bytes that a client may have on the smallest machine."""

_CGROUP_OF_SELF = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of processors that this process may use at a time.

    A cgroup's quota (Linux), such as CPUQuota of a systemd unit or a container's --cpus, counts as
    so many whole ones.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return min((len(os.sched_getaffinity(0)), *_cgroup_quotas()))


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
    """Return the bytes that this process's cgroup may have, and those around it."""
    limits: list[int] = []
    for folder, unified in _cgroups("memory"):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            name = "memory.max" if unified else "memory.limit_in_bytes"
            limits.append(int((folder / name).read_text()))
    return limits


def _cgroup_quotas() -> list[int]:
    """Return likewise the processors, rounded up."""
    quotas: list[int] = []
    for folder, unified in _cgroups("cpu"):
        names = ("cpu.max",) if unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            quota, period = (int(n) for name in names for n in (folder / name).read_text().split())
            if quota > 0:  # -1 is none
                quotas.append(-(-quota // period))
    return quotas


def _cgroups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's cgroups, and whether they are of the second version.

    macOS has none.
    """
    try:
        lines = _CGROUP_OF_SELF.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0"
        if not unified and controller not in controllers.split(","):
            continue
        base = _CGROUPS if unified else _CGROUPS / controller
        inner = base / path.lstrip("/")
        # In a container the path may be the machine's, and what is mounted here the container's.
        for folder in (inner, *inner.parents):
            yield folder, unified
            if folder == base:
                break
