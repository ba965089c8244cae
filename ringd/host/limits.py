"""Limits of this process that the system sets too low for a daemon."""

from __future__ import annotations

import contextlib
import resource

OPEN_FILES = 65536
"""Wanted: clients pass segments of memory, and each is a descriptor (macOS starts with 256)."""


def raise_open_files() -> None:
    """Raise the soft limit of open files as far as is wanted and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
