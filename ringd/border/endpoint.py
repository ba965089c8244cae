"""The two listening sockets and the lock that makes them one daemon's own.

libzmq by itself would delete the socket of a running daemon and take its place, and would
create the file before anyone can set its mode. So the sockets are made here, under a lock, and
beside their places; they are put there when they listen, with the right mode and group. Files can
be removed under a daemon that lives on; then they are made anew, by the same rules.
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
from ringd.host.holder import Holder
from ringd.wire.border.lifeline import SUFFIX

_BACKLOG = 512
_NEW = (".new0", ".new1")  # no longer than SUFFIX, so they fit where that does

_Identity = tuple[int, int]
"""Device and inode: which file it is, whatever it is called."""


class Endpoint:
    """The socket at *path*, the lifeline socket beside it, and the lock beside both.

    ``socket`` and ``lifeline_socket`` listen; they are their users' to close.
    """

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
        self.socket: socket.socket
        self.lifeline_socket: socket.socket
        self._node = node
        self._mode = mode
        self._lock_fd = -1
        self._lifeline_path = self.path + SUFFIX
        self._lock_path = self.path + ".lock"
        self._new_paths = tuple(self.path + suffix for suffix in _NEW)
        self._made: dict[str, _Identity | None] = {}
        try:
            check_socket_path(self._lifeline_path)
        except ValueError as error:
            raise errors.ConfigError(f"ipc.socket: {error}") from error
        self._gid = _group_id(group)
        try:
            self.renew()
        except BaseException:
            self.close()
            raise

    def lost(self) -> list[str]:
        """Return which of the three files are not there any more, or are not ours."""
        paths = (self.path, self._lifeline_path, self._lock_path)
        return [path for path in paths if not self._owns(path)]

    def renew(self, *replaced: str) -> list[str]:
        """Make what is :meth:`lost`, or to be *replaced*, anew, and return which that was.

        ``socket`` and ``lifeline_socket`` are new ones then; the old ones go on with whom they
        have accepted, and nobody can reach them any more.

        Raises:
            Refused: another daemon has taken the path.
            ConfigError: it cannot be used any more. Either way the sockets stay as they were, and
                what was lost is so yet.
        """
        lost = [*self.lost(), *replaced]
        wanted = {
            path: new
            for path, new in zip((self.path, self._lifeline_path), self._new_paths, strict=True)
            if path in lost
        }
        made: dict[str, socket.socket] = {}
        placed: list[str] = []
        try:
            Path(self.path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self._lock_path in lost:
                self._lock()
            for path, new in wanted.items():
                _check_place(path)
                made[path] = self._listen(new)
            for path, new in wanted.items():
                identity = _identity(new)
                Path(new).rename(path)
                placed.append(path)
                self._made[path] = identity
        except BaseException as error:
            for path, listener in made.items():
                listener.close()
                _remove_socket(wanted[path])
            for path in placed:  # nobody listens behind it any more
                self._remove(path)
            if isinstance(error, OSError):
                raise errors.ConfigError(
                    f"ipc.socket: cannot listen on {self.path}: {error.strerror or error}; choose "
                    "a directory that the daemon may write to"
                ) from error
            raise
        self.socket = made.get(self.path) or self.socket
        self.lifeline_socket = made.get(self._lifeline_path) or self.lifeline_socket
        return lost

    def close(self) -> None:
        """Remove the socket files and give the lock back; the sockets are their users' to close."""
        for path in (self.path, self._lifeline_path):
            self._remove(path)
        if self._lock_fd >= 0:
            # The lock file stays: deleting it would let two processes lock two files.
            os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _owns(self, path: str) -> bool:
        made = self._made.get(path)
        return made is not None and _identity(path) == made

    def _remove(self, path: str) -> None:
        """Remove a file of ours; one that somebody else has put there stays."""
        if self._owns(path):
            Path(path).unlink(missing_ok=True)
        self._made.pop(path, None)

    def _lock(self) -> None:
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = Holder.read(fd)
            os.close(fd)
            if holder is None:
                remedy = "stop it with `systemctl stop ringd`"
            elif holder.elsewhere:
                remedy = "stop it there, as this directory is that machine's too"
            else:
                remedy = f"stop it with `kill {holder.pid}`, or `systemctl stop ringd`"
            raise errors.Refused(
                f"the socket {self.path} belongs to a running daemon, "
                f"{holder or 'another process'}; {remedy}, or choose another --socket"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        if self._lock_fd >= 0:
            os.close(self._lock_fd)  # of a file that nobody else can find
        self._lock_fd = fd
        status = os.fstat(fd)
        self._made[self._lock_path] = (status.st_dev, status.st_ino)
        Holder.here(self._node).write(fd)

    def _listen(self, path: str) -> socket.socket:
        """Return a socket that listens at *path*, where nobody looks for one."""
        mode, gid = self._mode, self._gid
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound = False
        try:
            _check_place(path)
            _remove_socket(path)
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
                _remove_socket(path)
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


def _identity(path: str) -> _Identity | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_place(path: str) -> None:
    """Make sure that nothing stands at *path* but what a dead daemon, or we, have left.

    We hold the lock, so no live one uses it.
    """
    if os.path.lexists(path) and not _is_socket(path):
        raise errors.ConfigError(f"ipc.socket: {path} exists and is not a socket; move it away")


def _remove_socket(path: str) -> None:
    if _is_socket(path):
        Path(path).unlink(missing_ok=True)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
