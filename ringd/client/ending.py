"""Whether this program has failed, though a thread that waits keeps it alive.

Python ends a program only when its threads have ended. A thread that sits in a call would keep a
program for half an hour whose main thread has failed, and with it all members. What is looked at:

* the outermost frame of the main thread, as it was when the first ring was made. It has ended, and
  not by returning: an uncaught exception, or ``sys.exit()``. And now the main thread waits for the
  others to end (``threading._shutdown``), and does not go on, as at the prompt of ``python -i``;
* the exception that leaves a ``with ThreadPoolExecutor()`` or ``asyncio.run`` (Ctrl-C), while the
  main thread waits there for its executor's threads.

A main thread that returns while another goes on working has not failed. ``sys.exit(0)`` cannot be
told from ``sys.exit(1)``. Nor can ``finally: thread.join()`` with an exception on its way be told
from one that is caught further out, by a program that then goes on with what the thread has done.
"""

from __future__ import annotations

import dis
import sys
import threading
from types import FrameType
from typing import Any

from ringd.errors import MainThreadFailed

_RETURNS = {dis.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in dis.opmap}
_EXECUTOR = "concurrent/futures/_base.py"
_ASYNCIO = "asyncio/runners.py"
_THREADING = "threading.py"


class _Main:
    """The main thread's outermost frame, and what was said of its end."""

    frame: FrameType | None = None
    told = False
    """Whether a call of another thread has ended with MainThreadFailed."""


def remember_main_thread() -> None:
    """Take note of what the main thread runs; to be called before it can have ended."""
    if _Main.frame is not None:
        return
    now = _main_frame()
    if now is not None:
        _Main.frame = _outermost(now)
    del now  # or what the callers' frames hold, a ring say, were in a cycle of garbage with it


def main_thread_failed() -> bool:
    """Whether the main thread has failed, as the module's docstring says."""
    frame, now = _Main.frame, _main_frame()
    if frame is None:
        return False
    if now is None:
        return False
    outermost = _outermost(now)
    if outermost is not frame:
        return _is(outermost, "_shutdown", _THREADING) and not _returned(frame)
    return _leaves_executor(now)


def tell_of_failure() -> MainThreadFailed:
    """Return the error that ends a call of another thread; see :func:`goes_on_after_failure`."""
    _Main.told = True
    return MainThreadFailed()


def goes_on_after_failure() -> bool:
    """Whether this thread makes a call though the main thread has failed, and one was told so."""
    return (
        _Main.told
        and threading.get_ident() != threading.main_thread().ident
        and main_thread_failed()
    )


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - documented


def _outermost(frame: FrameType) -> FrameType:
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _returned(frame: FrameType) -> bool:
    """Whether the last instruction of *frame*, which has ended, returned from it."""
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] in _RETURNS


def _is(frame: FrameType, function: str, file: str) -> bool:
    """Whether *frame* runs *function* of the library's *file*."""
    code = frame.f_code
    return code.co_name == function and code.co_filename.replace("\\", "/").endswith(file)


def _leaves_executor(innermost: FrameType) -> bool:
    """Whether the main thread waits for an executor's threads, with an exception on its hands."""
    frame: FrameType | None = innermost
    while frame is not None:
        if _is(frame, "__exit__", _EXECUTOR) or _is(frame, "__exit__", _ASYNCIO):
            if frame.f_locals.get("exc_val") is not None:
                return True
        # Before Python 3.11 there was no `with`, but a `finally`.
        elif _is(frame, "run", _ASYNCIO) and _has_come_to(frame):
            return True
        frame = frame.f_back
    return False


def _has_come_to(frame: FrameType) -> bool:
    """Whether the exception that the main thread deals with was raised beneath *frame*."""
    failure: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)  # noqa: SLF001
    if isinstance(failure, tuple):  # before Python 3.12
        failure = failure[1]
    trace = None if failure is None else failure.__traceback__
    # It begins where the exception has got to.
    return trace is not None and trace.tb_frame is frame
