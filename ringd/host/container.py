"""What falls to the first process of a container."""

from __future__ import annotations

import os
import signal
import sys

_FIRST = 1


def take_first_place() -> None:
    """Do what the first process of a container must do, if this is one.

    The kernel makes it the parent of all that have lost theirs, which stay zombies until it asks
    for them, and keeps signals from it that it does not handle.
    """
    if os.getpid() != _FIRST:
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so the kernel keeps no zombies for it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the daemon's loop takes over
