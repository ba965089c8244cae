"""``ringd`` on a machine whose disk takes its time: ``launcher.py DELAY_FILE [ringd's options]``.

Every flush lasts as many seconds longer as the file says at that instant; without the file it is
the daemon as it is. Run as a script, in the place of ``-m ringd.daemon.main``. Other programs of
its user may look at it, as the tests do.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ringd.daemon import main
from ringd.ring import state

_flush = state.flush


def slow_flush(delay: Path) -> None:
    """Have the state file flushed as slowly as the file *delay* says, each time anew."""

    def flush(fd: int) -> None:
        try:
            seconds = float(delay.read_text() or 0)
        except FileNotFoundError:
            seconds = 0.0
        time.sleep(seconds)
        _flush(fd)

    state.flush = flush


if __name__ == "__main__":
    slow_flush(Path(sys.argv[1]))
    main.keep_memory_private = lambda: None
    main.main(sys.argv[2:], prog_name="ringd")
