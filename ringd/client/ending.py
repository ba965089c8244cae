"""Whether this program has failed, though a thread that waits keeps it alive.

Python ends a program only when its threads have ended. A thread that sits in a call would keep a
program for half an hour whose main thread has failed, and with it all members. What is looked at:

* the outermost frame of the main thread, as it was when the first ring was made. It has ended, and
  not by returning: an uncaught exception, or ``sys.exit()``;
* the exception that the main thread is ending with while it waits for its executor's threads:
  ``ThreadPoolExecutor.__exit__``, or ``asyncio.run`` after Ctrl-C.

A main thread that returns while another goes on working has not failed. ``sys.exit(0)`` cannot be
told from ``sys.exit(1)``.
"""

from __future__ import annotations

import dis
import sys
import threading
from types import FrameType

_RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap}
_EXECUTORS = (("concurrent/futures/_base.py", "__exit__"), ("asyncio/runners.py", "close"))
"""Where a thread waits for others with an exception on its hands: file, function."""


class _Main:
    """The main thread's outermost frame."""

    frame: FrameType | None = None


def remember_main_thread() -> None:
    """Take note of what the main thread runs; to be called before it can have ended."""
    if _Main.frame is None:
        _Main.frame = _outermost(_main_frame())


def main_thread_failed() -> bool:
    """Whether the main thread has failed, as the module's docstring says."""
    frame, now = _Main.frame, _main_frame()
    if frame is None:
        return False
    if now is None or _outermost(now) is not frame:
        return not _returned(frame)
    failure = sys._current_exceptions().get(threading.main_thread().ident or 0)  # noqa: SLF001
    # Before Python 3.12 a triple, of Nones where there is no exception.
    return failure not in (None, (None, None, None)) and _waits_for_executor(now)


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented


def _outermost(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _returned(frame: FrameType) -> bool:
    """Whether the last instruction of *frame*, which has ended, returned from it."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _RETURNS


def _waits_for_executor(frame: FrameType | None) -> bool:
    while frame is not None:
        where = frame.f_code.co_filename.replace("\\", "/")
        if any(
            frame.f_code.co_name == function and where.endswith(file)
            for file, function in _EXECUTORS
        ):
            return True
        frame = frame.f_back
    return False
