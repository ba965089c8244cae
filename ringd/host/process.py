"""Whether a process has ended, or is about to."""

from __future__ import annotations

import sys
from pathlib import Path

_EXITING = 4  # PF_EXITING of linux/sched.h


def ending(pid: int) -> bool:
    """Whether process *pid* will never run its program again.

    Linux says so from before it closes the process's files. True where the system says nothing:
    on macOS, and of a process that is invisible from here.
    """
    if sys.platform != "linux":
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return True
    state, *fields = stat.rpartition(")")[2].split()  # the name before that may hold anything
    return state in "ZX" or bool(int(fields[5]) & _EXITING)
