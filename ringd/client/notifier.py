"""Tells of calls that have ended, though nobody waits for them: callbacks, futures, ``await``.

A thread of its own waits for the calls that somebody wants to be told of, and calls back; so a
callback may take its time, and make calls. There is one only while there are such calls, and it
keeps no program alive. A program without them is not woken more often for this.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ringd.client.session import Op
from ringd.errors import MainThreadFailed

_log = logging.getLogger(__name__)


class Waiting(Protocol):
    """Whose call it is."""

    @property
    def hung_up(self) -> bool:
        """Whether all of its calls are to end."""

    def look_at(self, op: Op) -> None:
        """End *op* if its time is over."""


class Watched(NamedTuple):
    """A call of whose end somebody wants to be told."""

    owner: Waiting
    op: Op
    callback: Callable[[], object]


class Notifier:
    """Of one connection, whose *wait* waits until something is so, or a moment has come."""

    def __init__(self, wait: Callable[[Callable[[], bool], float | None], bool]) -> None:
        self._wait = wait
        self._watched: list[Watched] = []
        self._running = _thread.allocate_lock()
        """Held by the thread."""
        self._calling = _thread.allocate_lock()
        """Held by the thread while it calls back."""
        self._stopped = False

    def stop(self, patience: float) -> None:
        """Call back no more; return when that is so, or after *patience* seconds.

        For the program's end: Python then ends threads wherever they are, and C++, in which a
        callback may be, takes the whole process along.
        """
        self._stopped = True
        if self._calling.acquire(timeout=patience):
            self._calling.release()

    def watch(self, owner: Waiting, op: Op, callback: Callable[[], object]) -> None:
        """Have *callback* called once *op* has ended; the caller wakes who waits already."""
        self._watched.append(Watched(owner, op, callback))
        # The thread looks again once it is about to end. Of two that begin, one goes at once. As
        # for the keeper, the start is one call into C.
        if not self._running.locked():
            _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        while self._watched and self._running.acquire(blocking=False):
            try:
                while self._watched:
                    self._wait_for_any()
                    self._call_back()
            finally:
                self._running.release()

    def _wait_for_any(self) -> None:
        """Return when one of the calls has ended, or may have, or there are more of them.

        Where the main thread has failed, all end: threads may wait for what is told of them.
        """
        watched = [(owner, op, op.gives_up) for owner, op, _ in self._watched]
        limits = [limit for _, _, limit in watched if limit is not None]
        with contextlib.suppress(MainThreadFailed):
            self._wait(lambda: self._has_news(watched), min(limits, default=None))
        for owner, op, _ in watched:
            owner.look_at(op)

    def _has_news(self, watched: list[tuple[Waiting, Op, float | None]]) -> bool:
        if len(self._watched) > len(watched):  # none goes meanwhile
            return True
        return any(
            op.ended or owner.hung_up or op.gives_up != limit for owner, op, limit in watched
        )

    def _call_back(self) -> None:
        """Call back for all ops that have ended."""
        for watched in self._watched.copy():
            if watched.op.ended:
                self._watched.remove(watched)
                with self._calling:
                    if not self._stopped:
                        call_back(watched.op, watched.callback)


def call_back(op: Op, callback: Callable[[], object]) -> None:
    """Call *callback*, and log what it raises, whatever that is: the next one is to be called."""
    try:
        callback()
    except BaseException:  # noqa: BLE001
        _log.exception("a callback of %s failed", op.call)
