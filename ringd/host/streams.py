"""Standard input, output and error: there, whoever started us, and never in the way of the end."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from ringd.host.journal import complaint

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def prepare_standard_streams() -> None:
    """Open what is closed of them, and have a command's exit code hold whatever they do not take.

    What is lost of standard error is lost. Without standard output a command fails, in words; with
    a pipe that was closed it is click that ends it.
    """
    open_standard_streams()
    sys.stdout = _over(_Output(1, "w", closefd=False), sys.stdout, sys.__stdout__)
    sys.stderr = _over(_Errors(2, "w", closefd=False), sys.stderr, sys.__stderr__)


class _Errors(io.FileIO):
    """Loses what it cannot write: there is no place left to say so."""

    def write(self, data: ReadableBuffer, /) -> int:
        written = None
        with contextlib.suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written


class _Output(io.FileIO):
    """Ends the program when it cannot be written."""

    lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self.lost:  # written once more at the exit
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lost = True
            sys.exit(complaint(f"Error: standard output: {error.strerror}"))


def _over(raw: io.FileIO, old: TextIO, first: TextIO | None) -> TextIO:
    """Return a stream like *old* that writes to *raw*; *old* itself if it is not the *first* one.

    Then somebody else put it there, a test for instance.
    """
    if old is not first:
        return old
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, old.encoding, old.errors, line_buffering=True)


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
