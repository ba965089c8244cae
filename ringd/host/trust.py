"""Whether it is a daemon of this machine's that answers at a socket, or a stranger."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import stat
import sys
from pathlib import Path

from ringd.host.credentials import peer_credentials

SERVICE_USER = "_ringd" if sys.platform == "darwin" else "ringd"
"""As whom the machine's service runs."""


class StrangerError(PermissionError):
    """Another user answers at a daemon's socket, or could put one there; says who."""


def trusted_users() -> set[int]:
    """Return whose daemons a program of this user works with: its own, root's, the service's."""
    users = {0, os.geteuid()}
    with contextlib.suppress(KeyError):  # there is no service here
        users.add(pwd.getpwnam(SERVICE_USER).pw_uid)
    return users


def check_daemon(connection: socket.socket, path: Path) -> None:
    """Make sure that nobody but a trusted user has accepted *connection*, made to *path*.

    Raises:
        StrangerError: Another user has, or could take the place of the other sockets beside it.
        OSError: The connection has ended.
    """
    users = trusted_users()
    uid = peer_credentials(connection).uid
    if uid not in users:
        raise StrangerError(
            errno.EPERM,
            f"{path}: user {uid} answers there, which is neither this one (uid {os.geteuid()}), "
            f"root nor the service's ({SERVICE_USER}); run the daemon as one of these",
        )
    for place in path.absolute().parents:
        if who := _others(place.stat(), users):
            raise StrangerError(
                errno.EPERM, f"{path}: {who} can put a socket there; correct the mode of {place}"
            )


def _others(status: os.stat_result, users: set[int]) -> str:
    """Return who else can replace what *users* have in a directory; empty for nobody."""
    if status.st_uid not in users:
        return f"user {status.st_uid}"
    if status.st_mode & stat.S_ISVTX:  # as /tmp: only its owner can remove what is there
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "every user"
    # A user's own directory is open to whom the user has chosen.
    if status.st_mode & stat.S_IWGRP and status.st_uid != os.geteuid():
        return f"group {status.st_gid}"
    return ""
