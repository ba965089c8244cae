"""The listening sockets, under the lock that makes them one daemon's own.

libzmq by itself would delete the socket of a running daemon and take its place, and would
create the file before anyone can set its mode. So the sockets are made here, under the lock, and
beside their places; they are put there when they listen, with the right mode and group. Files can
be removed under a daemon that lives on; then they are made anew, by the same rules.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ringd.border.listening import (
    Identity,
    check_place,
    group_id,
    identity,
    listen_at,
    remove_socket,
)
from ringd.border.lock import SocketLock, unusable
from ringd.wire.border.lifeline import SUFFIX

_INNER_SUFFIX = ".zmq"
_NEW = (".new0", ".new1", ".new2")  # no longer than SUFFIX, so they fit where that does
_INNER_MODE = 0o600

_SETTING = "ipc.socket"


class Endpoint:
    """The socket at *path*, and beside it the lifeline socket, the inner socket and the lock.

    ``socket`` and ``lifeline_socket`` are for programs. ``inner_socket`` is for this daemon alone:
    its gate connects to the ZeroMQ socket there. All listen, and are their users' to close.
    """

    def __init__(self, lock: SocketLock, *, mode: int, group: str) -> None:
        """Create and listen.

        Args:
            lock: of the path; given back by :meth:`close`.
            mode: of those for programs, from their first instant, such as 0o660.
            group: of these; empty for the process's own.

        Raises:
            ConfigError: the path, or the group, cannot be used.
        """
        self.path = lock.socket
        self.socket: socket.socket
        self.lifeline_socket: socket.socket
        self.inner_socket: socket.socket
        self.inner_path = self.path + _INNER_SUFFIX
        self._lock = lock
        self._mode = mode
        self._paths = (self.path, self.path + SUFFIX, self.inner_path)
        self._made: dict[str, Identity | None] = {}
        try:
            self._gid = group_id(group)
            self.renew()
        except BaseException:
            self.close()
            raise

    def lost(self) -> list[str]:
        """Return which of the four files are not there any more, or are not ours."""
        lost = [path for path in self._paths if not self._owns(path)]
        return [*lost, self._lock.path] if self._lock.lost else lost

    def renew(self, *replaced: str) -> list[str]:
        """Make what is :meth:`lost`, or to be *replaced*, anew, and return which that was.

        The sockets are new ones then; nobody can reach the old ones any more.

        Raises:
            Refused: another daemon has taken the path.
            ConfigError: it cannot be used any more. Either way the sockets stay as they were, and
                what was lost is so yet.
        """
        lost = [*self.lost(), *replaced]
        wanted = {
            path: self.path + new
            for path, new in zip(self._paths, _NEW, strict=True)
            if path in lost
        }
        made: dict[str, socket.socket] = {}
        placed: list[str] = []
        try:
            Path(self.path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if self._lock.path in lost:
                self._lock.take()
            for path, new in wanted.items():
                check_place(path, _SETTING)
                made[path] = (
                    listen_at(new, _SETTING, mode=_INNER_MODE, gid=None)
                    if path == self.inner_path
                    else listen_at(new, _SETTING, mode=self._mode, gid=self._gid)
                )
            for path, new in wanted.items():
                made_now = identity(new)
                Path(new).rename(path)
                placed.append(path)
                self._made[path] = made_now
        except BaseException as error:
            for path, listener in made.items():
                listener.close()
                remove_socket(wanted[path])
            for path in placed:  # nobody listens behind it any more
                self._remove(path)
            if isinstance(error, OSError):
                raise unusable(self.path, error) from error
            raise
        outer, lifeline, inner = map(made.get, self._paths)
        self.socket = outer or self.socket
        self.lifeline_socket = lifeline or self.lifeline_socket
        self.inner_socket = inner or self.inner_socket
        self._lock.say("")
        return lost

    def close(self) -> None:
        """Remove the socket files and give the lock back; the sockets are their users' to close."""
        for path in self._paths:
            self._remove(path)
        self._lock.close()

    def _owns(self, path: str) -> bool:
        made = self._made.get(path)
        return made is not None and identity(path) == made

    def _remove(self, path: str) -> None:
        """Remove a file of ours; one that somebody else has put there stays."""
        if self._owns(path):
            Path(path).unlink(missing_ok=True)
        self._made.pop(path, None)
