"""Listening Unix sockets: where they may stand, and with their mode and group from the start."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ringd import errors
from ringd.host import users
from ringd.host.place import SOCKET, what_is_at

_BACKLOG = 512

Identity = tuple[int, int]
"""Device and inode: which file it is, whatever it is called."""


def listen_at(path: str, setting: str, *, mode: int, gid: int | None) -> socket.socket:
    """Return a socket that listens at *path*, where a dead daemon may have left one.

    Args:
        path: Where nobody else listens.
        setting: Which names the path, for errors.
        mode: Of the socket, from its first instant, such as 0o660.
        gid: The socket's group; None for the process's own.

    Raises:
        ConfigError: Something else stands there.
        OSError: It cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    try:
        check_place(path, setting)
        remove_socket(path)
        # Until the group is right, only the owner gets in, and nobody before listen().
        old = os.umask(0o777 & ~(mode if gid is None else mode & 0o700))
        try:
            listener.bind(path)
            bound = True
        finally:
            os.umask(old)
        if gid is not None:
            os.chown(path, -1, gid)
            Path(path).chmod(mode)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        if bound:
            remove_socket(path)
        raise
    return listener


def check_place(path: str, setting: str) -> None:
    """Make sure that nothing stands at *path*, which *setting* names, but perhaps a socket.

    Raises:
        ConfigError: Something does.
    """
    there = what_is_at(path)
    if there not in ("", SOCKET):
        raise errors.ConfigError(f"{setting}: {path} is not a socket but {there}; move it away")


def remove_socket(path: str) -> None:
    """Remove the socket at *path*, if there is one."""
    if what_is_at(path) == SOCKET:
        Path(path).unlink(missing_ok=True)


def identity(path: str) -> Identity | None:
    """Return which file stands at *path*; None where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def group_id(group: str) -> int | None:
    """Return the number of ``ipc.group``; None if that is empty.

    Raises:
        ConfigError: There is no such group.
    """
    if not group:
        return None
    try:
        return users.group_id(group)
    except KeyError:
        raise errors.ConfigError(
            f"ipc.group: there is no group {group!r} here; create it (groupadd --system {group}) "
            "or name another"
        ) from None
