"""Saving the state beside the loop: heartbeats are due meanwhile, however slow the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from ringd.loop import Loop, Timer
from ringd.ring.state import State, StateFile

SLOW = 1.0
"""Seconds from which a write is worth a word; an ordinary disk takes some milliseconds."""

LATELY = 60.0
"""Seconds for which a slow write is worth a word when it is over; the next may be months away."""

AT_STOP = 5.0
"""Seconds that a write under way gets to end when the daemon stops."""


_T = TypeVar("_T")


def patiently(work: Callable[[], _T], where: Path, on_slow: Callable[[str], None]) -> _T:
    """Return what *work* on the disk, in *where*, returns; for a daemon that has no loop yet.

    ``on_slow(text)`` is called from this thread, each second from :data:`SLOW` on.
    """
    future: futures.Future[_T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            future.set_exception(error)

    log = structlog.get_logger("disk")
    began = time.monotonic()
    # It must not keep the process from its end, however long the disk does not answer.
    threading.Thread(target=run, name="state", daemon=True).start()
    slow = False
    while not futures.wait([future], SLOW).done:
        seconds = time.monotonic() - began
        reason = f"{where}: no answer for {seconds:.0f} s"
        if not slow:
            log.warning("the disk is slow", reason=reason, seconds=seconds)
        slow = True
        on_slow(f"{reason}: the disk is slow")
    if slow:
        log.info("the disk has answered", seconds=time.monotonic() - began)
    return future.result()


class StateWriter:
    """Saves to *store*, one write at a time, in a thread for each.

    Args:
        loop: Where the outcome is told.
        store: What is written to; nobody else saves meanwhile.
        on_slow: Told in words, each second from :data:`SLOW` on that a write lasts.
    """

    def __init__(self, loop: Loop, store: StateFile, on_slow: Callable[[str], None]) -> None:
        self.last_write: float | None = None
        """Seconds that the last write took that has ended."""
        self._loop = loop
        self._store = store
        self._on_slow = on_slow
        self._log = structlog.get_logger("disk")
        self._since: float | None = None
        self._ended_at: float | None = None
        self._said_slow = False
        self._first_slow = False  # the write under way is the one of which the log has said so
        self._patience: Timer | None = None
        self._thread: threading.Thread | None = None

    @property
    def writing_for(self) -> float | None:
        """For how many seconds a write has been under way; None without one."""
        return None if self._since is None else self._loop.now() - self._since

    @property
    def last_write_age(self) -> float | None:
        """How many seconds ago the last write ended; None before the first."""
        return None if self._ended_at is None else self._loop.now() - self._ended_at

    @property
    def slow(self) -> bool:
        """Whether the write under way is slow, or one was that ended lately."""
        if (self.writing_for or 0.0) >= SLOW:
            return True
        age = self.last_write_age
        return age is not None and age < LATELY and (self.last_write or 0.0) >= SLOW

    def save(self, state: State, done: Callable[[OSError | None], None]) -> None:
        """Write *state*; ``done(error)`` is called from the loop, when it is on the disk or failed.

        After :meth:`finish` it may not be called any more.
        """
        assert self._since is None, "two writes at a time"  # noqa: S101 - the machine's promise
        self._since = self._loop.now()
        self._patience = self._loop.call_later(SLOW, self._lasts)
        self._thread = threading.Thread(
            target=self._run, args=(state, done), name="state", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads to be had
            failed = OSError(0, str(error))
            self._thread = None
            self._loop.call_soon(lambda: self._ended(done, failed))

    def finish(self) -> bool:
        """Wait for a write under way, at most :data:`AT_STOP`; return whether none is any more."""
        if self._patience is not None:
            self._patience.cancel()
        if self._thread is None:
            return True
        self._thread.join(AT_STOP)
        return not self._thread.is_alive()

    def _run(self, state: State, done: Callable[[OSError | None], None]) -> None:
        failed: BaseException | None = None
        try:
            self._store.save(state)
        except BaseException as error:  # noqa: BLE001 - raised again in the loop
            failed = error
        self._loop.call_threadsafe(partial(self._ended, done, failed))

    def _lasts(self) -> None:
        """Say that the write under way is slow."""
        self._patience = self._loop.call_later(SLOW, self._lasts)
        seconds = self.writing_for or 0.0
        reason = f"{self._store.path}: not on the disk after {seconds:.0f} s"
        if not self._said_slow:
            self._log.warning("the disk is slow", reason=reason, seconds=seconds)
            self._said_slow = self._first_slow = True
        self._on_slow(f"{reason}: the disk is slow")

    def _ended(self, done: Callable[[OSError | None], None], failed: BaseException | None) -> None:
        took = self.writing_for or 0.0
        self._since = self._thread = None
        self.last_write, self._ended_at = took, self._loop.now()
        if self._patience is not None:
            self._patience.cancel()
        if failed is not None and not isinstance(failed, OSError):
            raise failed  # a fault of ours, which would never have an outcome
        if took < SLOW and self._said_slow:
            self._said_slow = False
            self._log.info("the disk is no longer slow", seconds=took)
        elif self._said_slow:
            say = self._log.info if self._first_slow else self._log.debug
            say("a slow write has ended", seconds=took)
        self._first_slow = False
        done(failed)
