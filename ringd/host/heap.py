"""The daemon's own heap: large blocks go back when they are freed, the collector has little to do.

A daemon runs for months beside programs that want the memory themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

LARGE = 384 << 10
"""Bytes from which a block is a mapping of its own, and goes back when it is freed.

Below are the messages that bring a tensor with an offer: as mappings of their own, which the system
clears page by page, three blocks of 256 KiB cost a call 0.3 ms.
"""

SPARE = 2 << 20
"""Bytes that may lie free at the end of the heap."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def give_back_large_blocks() -> None:
    """Fix malloc's thresholds, where it is glibc's; macOS gives memory back by itself.

    glibc begins with this threshold too, but raises it to the size of any larger block that is
    freed, up to 32 MiB, and then lets twice as much lie free. Measured: three daemons that reduced
    64 MiB of float16 held 53 to 71 MiB by that, and 46 MiB with it fixed. Calls take as long
    either way, as chunk buffers are pooled and messages are shorter than :data:`LARGE`.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has no such function, nor the need
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, LARGE)
            mallopt(_M_TRIM_THRESHOLD, SPARE)


def give_back_free_blocks() -> None:
    """Give back also what lies free between blocks in use; for an idle moment, as it takes some ms.

    Measured: 7 of the 74 MiB that a daemon held after some minutes of a chaos run.
    """
    gc.collect()
    _trim()


def _trim() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # as above
            ctypes.CDLL(None).malloc_trim(0)


def settle() -> None:
    """Leave all that exists now out of later collections: it stays till the end anyway.

    Otherwise each full one looks at the 36,000 objects of a start, which takes 6 to 14 ms in which
    the ring waits, and it comes only when a quarter as many have piled up. For the same reason
    only the young ones are looked at here, in 0.2 ms: a start leaves no garbage among the others.
    What the modules' files took while they were read goes back: 1 MiB.
    """
    gc.collect(1)
    gc.freeze()
    _trim()
