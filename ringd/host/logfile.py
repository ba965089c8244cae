"""A log file that is moved away as it grows: the daemon goes on in its successor.

launchd leads standard error to a file once, at the start. newsyslog renames that file later, and
compresses it: what is written to it from then on is lost.
"""

from __future__ import annotations

import contextlib
import os

VARIABLE = "RINGD_LOG_FILE"
"""Names the file to which a service manager leads standard error."""


def follow(path: str, fd: int) -> None:
    """Let *fd* lead to the file at *path* if it leads to another one; make that if need be.

    Where it cannot be opened, *fd* stays as it is.
    """
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(path), os.fstat(fd)):  # noqa: PTH116 - beside fstat
            return
    with contextlib.suppress(OSError):
        new = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.dup2(new, fd)
        os.close(new)
