"""``ringd`` on a machine whose disk takes its time: ``launcher.py DELAY_FILE [ringd's options]``.

Every flush lasts as many seconds longer as the file says at that instant; if it says "full", there
is no room. Without the file it is the daemon as it is. A file beside it that ends in ".drain" says
how many seconds calls get to finish when it is drained. Run as a script, in the place of
``-m ringd.daemon.main``. Other programs of its user may look at it, as the tests do.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

from ringd.daemon import daemon, main
from ringd.ring import state

_flush = state.flush


def slow_flush(delay: Path) -> None:
    """Have the state file flushed as slowly as the file *delay* says, each time anew."""

    def flush(fd: int) -> None:
        try:
            text = delay.read_text()
        except FileNotFoundError:
            text = ""
        if text == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(float(text or 0))
        _flush(fd)

    state.flush = flush


if __name__ == "__main__":
    slow_flush(Path(sys.argv[1]))
    if (drain := Path(sys.argv[1]).with_suffix(".drain")).exists():
        daemon.DRAIN = float(drain.read_text())
    main.keep_memory_private = lambda: None
    main.main(sys.argv[2:], prog_name="ringd")
