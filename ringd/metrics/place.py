"""Where scrapers come: a port on loopback, or a Unix socket."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from ringd.border.listening import check_place, identity, listen_at, remove_socket
from ringd.config.units import parse_address

_SETTING = "metrics.listen"
_BACKLOG = 64


class Place:
    """The place that ``metrics.listen`` names.

    Args:
        text: An address, or the full path of a socket.
        mode: Of that socket.
        gid: Its group; None for the process's own.
    """

    def __init__(self, text: str, *, mode: int, gid: int | None) -> None:
        self.text = text
        self._path = text if text.startswith("/") else ""
        self._mode = mode
        self._gid = gid
        self._made: object = None

    def listen(self) -> socket.socket:
        """Return a socket that listens there, in the place of one whose file is gone.

        Raises:
            OSError: Nobody can listen there now, as somebody else does, for instance.
            ConfigError: Something that is no socket stands there.
        """
        if not self._path:
            return _listen_on(*parse_address(self.text))
        if _answers(self._path):
            raise OSError(
                errno.EADDRINUSE, "another process listens there; stop it, or change metrics.listen"
            )
        check_place(self._path, _SETTING)
        beside = self._path + ".new"
        listener = listen_at(beside, _SETTING, mode=self._mode, gid=self._gid)
        self._made = identity(beside)
        try:
            Path(beside).rename(self._path)
        except OSError:  # another user's file is there, and the directory is like /tmp
            listener.close()
            remove_socket(beside)
            raise
        return listener

    @property
    def lost(self) -> bool:
        """Whether its file is not there any more, or is somebody else's."""
        return bool(self._path) and identity(self._path) != self._made

    def leave(self) -> None:
        """Remove its file, if there is one and it is ours."""
        if self._path and not self.lost:
            remove_socket(self._path)


def _listen_on(host: str, port: int) -> socket.socket:
    host = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def _answers(path: str) -> bool:
    """Whether somebody listens at *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # its queue is full
            return True
        except OSError:
            return False
    return True
