"""Files in which a daemon keeps what is its own: never links, never another user's.

Who else may write to the directory could put a link there, to a file of this user's that would be
overwritten, or a file of their own, whose numbers would be believed. A directory that this user
owns may be open to its group, which is the user's to choose, as often it is the user's alone.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def strangers_in(status: os.stat_result, uid: int) -> str:
    """Return who besides user *uid* and root can change a file or directory; empty for nobody."""
    if status.st_uid not in (uid, 0):
        return f"belongs to user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by all users"
    if status.st_uid != uid and status.st_mode & stat.S_IWGRP:
        return f"can be written by group {status.st_gid}"
    return ""


def check_directory(directory: Path, uid: int | None = None) -> None:
    """Make sure that nobody but user *uid* (this process's) and root can put files there.

    Raises:
        OSError: Others can; or there is no such directory.
    """
    uid = os.geteuid() if uid is None else uid
    if who := strangers_in(directory.stat(), uid):
        raise PermissionError(errno.EPERM, f"the directory {who}", str(directory))


def open_own(path: Path, flags: int, mode: int = 0o600, uid: int | None = None) -> int:
    """Open a file that is this user's own, or root's; returns its descriptor.

    Raises:
        OSError: It cannot be opened, is a link or no file, or others can write to it.
    """
    uid = os.geteuid() if uid is None else uid
    # Not blocking, so that a FIFO in the file's place cannot stop the daemon.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    try:
        _check_file(path, os.fstat(fd), uid)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_file(path: Path, status: os.stat_result, uid: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    if who := strangers_in(status, uid):
        raise PermissionError(errno.EPERM, f"the file {who}", str(path))
