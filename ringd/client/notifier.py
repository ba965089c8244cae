"""Tells of calls that have ended, though nobody waits for them: callbacks, futures, ``await``.

A thread of its own waits for the calls that somebody wants to be told of, and calls back; so a
callback may take its time, and make calls. There is one only while there are such calls, and it
keeps no program alive. A program without them is not woken more often for this.
"""

from __future__ import annotations

import _thread
import logging
from collections.abc import Callable, Iterator

from ringd.client.session import Op

_log = logging.getLogger(__name__)


class Notifier:
    """Of one connection, of which *wait_for_any* returns when one of some ops has ended."""

    def __init__(self, wait_for_any: Callable[[Callable[[], Iterator[Op]]], None]) -> None:
        self._wait_for_any = wait_for_any
        self._watched: list[tuple[Op, Callable[[], object]]] = []
        self._running = _thread.allocate_lock()
        """Held by the thread."""

    def watch(self, op: Op, callback: Callable[[], object]) -> None:
        """Have *callback* called once *op* has ended; the caller wakes who waits already."""
        self._watched.append((op, callback))
        # The thread looks again once it is about to end. Of two that begin, one goes at once. As
        # for the keeper, the start is one call into C.
        if not self._running.locked():
            _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        while self._watched and self._running.acquire(blocking=False):
            try:
                while self._watched:
                    self._wait_for_any(self._ops)
                    self._call_back()
            finally:
                self._running.release()

    def _ops(self) -> Iterator[Op]:
        return (op for op, _ in self._watched)  # others may be appended meanwhile

    def _call_back(self) -> None:
        """Call back for all ops that have ended."""
        for watched in self._watched.copy():
            op, callback = watched
            if op.ended:
                self._watched.remove(watched)
                call_back(op, callback)


def call_back(op: Op, callback: Callable[[], object]) -> None:
    """Call *callback*, and log what it raises, whatever that is: the next one is to be called."""
    try:
        callback()
    except BaseException:  # noqa: BLE001
        _log.exception("a callback of %s failed", op.call)
