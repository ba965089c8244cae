"""Standard input, output and error: there, whoever started us."""

from __future__ import annotations

import contextlib
import os
import sys


def open_standard_streams() -> None:
    """Open what is closed of descriptors 0 to 2 on /dev/null, and the streams of Python with them.

    Otherwise the next sockets take these numbers, and what any library writes to standard error
    goes into one of them. To be called before anything else is opened.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):  # no /dev/null: nothing can be done, nor said
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
                os.set_inheritable(fd, True)
    # Streams of their own, so that they need no descriptor to be in place; never closed.
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
