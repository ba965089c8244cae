"""Writing lines without ever waiting for whoever should read them."""

from __future__ import annotations

import os
import queue
import select
import threading
from collections.abc import Callable
from typing import TextIO

WAITING = 500
"""Lines that may wait for a slow reader; more are lost."""


class LineWriter:
    """Writes to *stream* from a thread of its own; what is lost is counted in :attr:`lost`.

    A pipe that nobody reads, a terminal that was stopped or a file system that hangs would hold
    up whoever writes to it, and no log is worth the ring.

    Args:
        stream: Where to.
        before: Called in that thread with the stream's descriptor, before each line.
    """

    def __init__(self, stream: TextIO, before: Callable[[int], None] | None = None) -> None:
        self.stream = stream
        self._before = before
        self._unwritten = 0  # counted in the thread, and the others by who writes
        self._unqueued = 0
        self._told = 0  # of those lost
        self._lines: queue.Queue[str] = queue.Queue(WAITING)
        try:
            self._fd = stream.fileno()
        except (OSError, ValueError):
            self._fd = -1  # a stream in memory
        # Should it hang in a write for ever, it must not keep the process from its end.
        threading.Thread(target=self._run, name="log", daemon=True).start()

    @property
    def lost(self) -> int:
        """Lines that were not written, and never will be."""
        return self._unqueued + self._unwritten

    def write(self, line: str) -> bool:
        """Have *line* written, a newline behind it; return False if it is lost."""
        try:
            self._lines.put_nowait(line + "\n")
        except queue.Full:
            self._unqueued += 1
            return False
        return True

    def news_of_loss(self) -> int:
        """Return how many lines are lost so far, if more than when this was last asked; else 0."""
        told, self._told = self._told, self.lost
        return self._told if self._told > told else 0

    def flush(self, timeout: float) -> bool:
        """Wait until all is written, at most *timeout* seconds; return whether it is."""
        lines = self._lines
        with lines.all_tasks_done:
            return lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, timeout)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            try:
                self._put(line)
            except (OSError, ValueError):
                self._unwritten += 1
            self._lines.task_done()

    def _put(self, line: str) -> None:
        if self._fd < 0:
            self.stream.write(line)
            return
        if self._before is not None:
            self._before(self._fd)
        # Past the stream's buffer, whose lock would be held by a write that hangs.
        rest = memoryview(line.encode(errors="replace"))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # made so by somebody who shares the file
                select.select([], [self._fd], [])
