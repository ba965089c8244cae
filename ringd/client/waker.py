"""A pipe by which one thread ends another one's sleep on the sockets."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from itertools import chain, starmap


class Waker:
    """Owns the pipe; its descriptors are closed with it at the latest."""

    def __init__(self) -> None:
        self._ends: list[int] = []
        # One call into C makes and stores them, so that no interrupt comes between.
        self._ends.extend(chain.from_iterable(starmap(os.pipe, ((),))))
        self._pid = os.getpid()
        self.reader = self._ends[0]
        """What the sleeper polls."""
        for end in self._ends:
            os.set_blocking(end, False)

    def wake(self) -> None:
        """End the sleep; from anywhere, without a lock. A forked child leaves its parent's alone.

        Harmless where nobody sleeps, or after :meth:`close`.
        """
        if os.getpid() == self._pid:
            # Full: it is about to end anyway. Or closed.
            with contextlib.suppress(OSError, IndexError):
                os.write(self._ends[1], b"\0")

    def drain(self) -> None:
        """Take in what woke the sleeper."""
        with contextlib.suppress(BlockingIOError):  # a signal handler has done that
            os.read(self.reader, 4096)

    def close(self) -> None:
        """Release the descriptors, on which nobody may sleep any more; again is harmless."""
        ends = self._ends
        with contextlib.suppress(IndexError):  # another thread was first
            # What is forgotten is closed at the same stroke, whatever interrupts this.
            deque(map(os.close, map(ends.pop, (-1,) * len(ends))), 0)

    def __del__(self) -> None:
        if hasattr(self, "_ends"):  # an interrupt may have come before that
            self.close()
