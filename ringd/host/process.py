"""Whether a process has ended, or is about to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_EXITING = 4  # PF_EXITING of linux/sched.h


def ending(pid: int) -> bool:
    """Whether process *pid* is known never to run its program again.

    Linux says so from before it closes the process's files. Elsewhere, and of a process that is
    hidden from here, it is known only once the process is gone altogether.
    """
    if pid <= 0:  # of another namespace
        return False
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return _gone(pid)
        state, *fields = stat.rpartition(")")[2].split()  # the name before may hold anything
        return state in "ZX" or bool(int(fields[5]) & _EXITING)
    return _gone(pid)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    return False
