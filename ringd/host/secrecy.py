"""Keeping what is in this process's memory, such as the ring's key, from other programs."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

_SET_DUMPABLE = 4  # PR_SET_DUMPABLE of linux/prctl.h


def keep_memory_private() -> None:
    """Have no core written of this process, and on Linux no other program of its user read it.

    That is what a debugger could do, too; root still can.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library that has no such function
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
