"""Getting bytes onto the disk itself, past every cache."""

from __future__ import annotations

import fcntl
import os
import sys


def flush(fd: int) -> None:
    """Return once what was written to *fd* would survive a power cut; OSError if it failed."""
    if sys.platform == "darwin":
        try:
            # fsync there stops at the drive's own cache.
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError:
            # Some file systems (network, external) know only fsync.
            os.fsync(fd)
    else:
        os.fsync(fd)
