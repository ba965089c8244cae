"""The hostfile that ``run --mlx`` writes for its program, for as long as that runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from tempfile import gettempdir, mkstemp

from ringd.host.ownfile import open_own

_PREFIX, _SUFFIX = "ringd-mlx-", ".json"


class OwnHostfile:
    """A file with *text* in the directory for temporary ones; :meth:`remove` it.

    It is locked meanwhile. So those of commands that were killed are known, and removed by the next
    one; in a directory that several containers share their process numbers would tell nothing.

    Raises:
        OSError: There is no room for it.
    """

    def __init__(self, text: str) -> None:
        _remove_forsaken()
        self._fd, path = mkstemp(prefix=_PREFIX, suffix=_SUFFIX)
        self.path = Path(path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.write(self._fd, text.encode())
        except OSError:
            self.remove()
            raise

    def remove(self) -> None:
        """Leave nothing behind; to be called once."""
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def _remove_forsaken() -> None:
    for path in Path(gettempdir()).glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another user's, locked, or gone already
            fd = open_own(path, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_size:  # else it is yet to be locked by whoever has made it
                    path.unlink()
            finally:
                os.close(fd)
