"""``ringd`` on a machine whose disk takes its time: ``launcher.py DELAY_FILE [ringd's options]``.

Every flush lasts as many seconds longer as the file says at that instant; if it says "full", there
is no room. Without the file it is the daemon as it is. A file beside it that ends in ".drain" says
how many seconds calls get to finish when it is drained; to one that ends in ".functions" it writes,
as it ends, the names of the functions that it ran. Run as a script, in the place of
``-m ringd.daemon.main``. Other programs of its user may look at it, as the tests do.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
from pathlib import Path
from types import FrameType

from ringd import loop
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


def note_functions(path: Path) -> None:
    """Have the names of all functions that run written to *path* in the end, but for waiting's."""
    waiting = {loop.__file__}
    names = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename not in waiting:
            names.append(frame.f_code.co_name)

    def write() -> None:
        sys.setprofile(None)
        path.write_text("\n".join(names))

    atexit.register(write)
    sys.setprofile(note)


if __name__ == "__main__":
    slow_flush(Path(sys.argv[1]))
    if (drain := Path(sys.argv[1]).with_suffix(".drain")).exists():
        daemon.DRAIN = float(drain.read_text())
    if (functions := Path(sys.argv[1]).with_suffix(".functions")).exists():
        note_functions(functions)
    main.keep_memory_private = lambda: None
    main.main(sys.argv[2:], prog_name="ringd")
