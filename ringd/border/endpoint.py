"""The two listening sockets and the lock that makes them one daemon's own.

libzmq by itself would delete the socket of a running daemon and take its place, and would
create the file before anyone can set its mode. So the sockets are made here, under a lock.
"""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

from ringd import errors
from ringd.host.credentials import check_socket_path
from ringd.wire.lifeline import SUFFIX

_BACKLOG = 512


class Endpoint:
    """The socket at *path*, the lifeline socket beside it, and the lock beside both."""

    def __init__(self, path: str | os.PathLike[str], *, node: str, mode: int, group: str) -> None:
        """Lock, create and listen.

        Args:
            path: of the main socket; its directory is made if need be.
            node: this daemon's name, told to others who want the same path.
            mode: of both sockets, from their first instant, such as 0o660.
            group: the sockets' group; empty for the process's own.

        Raises:
            Refused: another daemon holds the path; the message has its pid.
            ConfigError: the path, or the group, cannot be used.
        """
        self.path = os.path.abspath(path)  # noqa: PTH100 - keeps symlinks as the user wrote them
        self._lock_fd = -1
        self._made: list[str] = []
        lifeline_path = self.path + SUFFIX
        try:
            check_socket_path(lifeline_path)
        except ValueError as error:
            raise errors.ConfigError(f"ipc.socket: {error}") from error
        gid = _group_id(group)
        try:
            Path(self.path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock(node)
            self.socket = self._listen(self.path, mode, gid)
            try:
                self.lifeline_socket = self._listen(lifeline_path, mode, gid)
            except BaseException:
                self.socket.close()
                raise
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise errors.ConfigError(
                    f"ipc.socket: cannot listen on {self.path}: {error.strerror or error}; choose "
                    "a directory that the daemon may write to"
                ) from error
            raise

    def close(self) -> None:
        """Remove the socket files and give the lock back; the sockets are their users' to close."""
        for path in self._made:
            Path(path).unlink(missing_ok=True)
        self._made.clear()
        if self._lock_fd >= 0:
            # The lock file stays: deleting it would let two processes lock two files.
            os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock(self, node: str) -> None:
        path = self.path + ".lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, holder = os.read(fd, 512).decode(errors="replace").strip().partition(" ")
            os.close(fd)
            who = f"process {pid} (node {holder})" if pid else "another process"
            stop = f"`kill {pid}`, or `systemctl stop ringd`" if pid else "`systemctl stop ringd`"
            raise errors.Refused(
                f"the socket {self.path} belongs to a running daemon, {who}; stop it with {stop}, "
                "or choose another --socket"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {node}\n".encode(), 0)

    def _listen(self, path: str, mode: int, gid: int | None) -> socket.socket:
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Until the group is right, only the owner gets in, and nobody before listen().
            old = os.umask(0o777 & ~(mode if gid is None else mode & 0o700))
            try:
                listener.bind(path)
            finally:
                os.umask(old)
            self._made.append(path)
            if gid is not None:
                os.chown(path, -1, gid)
                Path(path).chmod(mode)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener


def _group_id(group: str) -> int | None:
    if not group:
        return None
    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise errors.ConfigError(
            f"ipc.group: there is no group {group!r} here; create it (groupadd --system {group}) "
            "or name another"
        ) from None


def _remove_stale(path: str) -> None:
    """Remove what a dead daemon left; we hold the lock, so no live one uses it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise errors.ConfigError(f"ipc.socket: {path} exists and is not a socket; move it away")
    Path(path).unlink()
