"""The metrics in a file, for node_exporter's textfile collector.

It is replaced at once, so nobody reads a part of it; and removed at the end, as nothing would tell
its last values from live ones. No link is followed that others put in its directory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from ringd.host.ownfile import open_own
from ringd.loop import Loop

_MODE = 0o644  # there is no secret in it, and others are to read it

_AT_STOP = 1.0
"""Seconds that a write under way gets to end."""


class TextFile:
    """Writes *text* to *path* every *interval* seconds, in a thread: the disk may be slow.

    Args:
        loop: The daemon's.
        path: The file.
        interval: Seconds.
        text: Returns what belongs there now.
        log: Is told once of what is in the way.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        interval: float,
        text: Callable[[], bytes],
        log: FilteringBoundLogger,
    ) -> None:
        self._loop = loop
        self._path = path
        self._interval = interval
        self._text = text
        self._log = log
        self._trouble = ""
        self._thread: threading.Thread | None = None
        self._next()

    def close(self) -> None:
        """Write no more, and remove the file."""
        self._timer.cancel()
        if self._thread is not None:
            self._thread.join(_AT_STOP)
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._say(error)

    def _next(self) -> None:
        self._timer = self._loop.call_later(self._interval, self._next)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write, args=(self._text(),), name="metrics", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError as error:  # no more threads to be had
                self._ended(OSError(0, str(error)))

    def _write(self, text: bytes) -> None:
        failed = None
        beside = self._path.with_name(self._path.name + ".new")
        try:
            beside.unlink(missing_ok=True)  # of a daemon that was killed; or another's link
            fd = open_own(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(fd, "wb") as file:
                file.write(text)
                os.fchmod(fd, _MODE)
            beside.replace(self._path)
        except OSError as error:
            failed = error
        self._loop.call_threadsafe(partial(self._ended, failed))

    def _ended(self, failed: OSError | None) -> None:
        self._thread = None
        if failed is None:
            self._trouble = ""
        else:
            self._say(failed)

    def _say(self, error: OSError) -> None:
        reason = f"{self._path}: {error.strerror}"
        if reason != self._trouble:
            self._log.error("metrics are not written", reason=reason)
        self._trouble = reason
