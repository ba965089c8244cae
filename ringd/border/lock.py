"""The lock beside a socket's place, which makes the place one daemon's own.

It is taken before anything else: so all who look for the socket while there is none yet, as the
disk is slow for instance, can be told that a daemon is starting, and what it waits for.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from ringd import errors
from ringd.host import holder
from ringd.host.credentials import check_socket_path
from ringd.host.holder import Holder
from ringd.host.ownfile import open_own
from ringd.host.place import FILE, what_is_at
from ringd.wire.border.lifeline import SUFFIX

_PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
}

STARTING = "it has not opened its socket yet"
"""What a daemon is said to wait for if it has said nothing else."""


class SocketLock:
    """Held from its making to :meth:`close`."""

    def __init__(self, socket: str | os.PathLike[str], *, node: str, waits: str = STARTING) -> None:
        """Lock the place *socket*; its directory is made if need be.

        Args:
            socket: where the daemon's socket is to be.
            node: this daemon's name, told to others who want the same place.
            waits: as of :meth:`say`.

        Raises:
            Refused: another daemon holds it; the message has its pid.
            ConfigError: the place cannot be used.
            RingError: it cannot be used now.
        """
        self.socket = os.path.abspath(socket)  # noqa: PTH100 - keeps symlinks as the user wrote them
        self.path = self.socket + holder.SUFFIX
        self._node = node
        self._waits = waits
        self._fd = -1
        try:
            check_socket_path(self.socket + SUFFIX)
        except ValueError as error:
            raise errors.ConfigError(f"ipc.socket: {error}") from error
        self.take()

    @property
    def lost(self) -> bool:
        """Whether the file that is locked is not the one that others find."""
        try:
            return self._fd < 0 or not os.path.samestat(os.lstat(self.path), os.fstat(self._fd))
        except OSError:
            return True

    def take(self) -> None:
        """Take it, or, where the file was removed, take it anew.

        Raises:
            Refused: another daemon holds it.
            ConfigError: the place cannot be used.
            RingError: it cannot be used now.
        """
        try:
            Path(self.path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = open_own(Path(self.path), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            holder.take(fd)
        except BlockingIOError:
            other = Holder.read(fd)
            os.close(fd)
            raise self._refusal(other) from None
        except OSError as error:
            os.close(fd)
            raise self._unusable(error) from error
        if self._fd >= 0:
            os.close(self._fd)  # of a file that nobody else can find
        self._fd = fd
        self.say(self._waits)

    def say(self, waits: str) -> None:
        """Say in the lock what is waited for until the socket is open; empty once it is."""
        self._waits = waits
        with contextlib.suppress(OSError):  # a full disk; the lock holds all the same
            Holder.here(self._node, waits).write(self._fd)

    def close(self) -> None:
        """Give it back; closing twice is harmless."""
        if self._fd >= 0:
            # The file stays: deleting it would let two processes lock two files.
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SocketLock:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refusal(self, other: Holder | None) -> errors.Refused:
        if other is None:
            remedy = "stop it with `systemctl stop ringd`"
        elif other.elsewhere:
            remedy = "stop it there, as this directory is that machine's too"
        else:
            remedy = f"stop it with `kill {other.pid}`, or `systemctl stop ringd`"
        return errors.Refused(
            f"the socket {self.socket} belongs to a running daemon, "
            f"{other or 'another process'}; {remedy}, or choose another --socket"
        )

    def _unusable(self, error: OSError) -> errors.RingError:
        there = what_is_at(self.path)
        if there not in ("", FILE):
            return errors.ConfigError(
                f"ipc.socket: {self.path}, the lock of {self.socket}, is {there}; move it away"
            )
        return unusable(self.socket, error)


def unusable(socket: str, error: OSError) -> errors.RingError:
    """Return the error for *socket*, which cannot be listened on for *error*.

    A ConfigError if it is for a person to mend; a full disk, for instance, may mend by itself.
    """
    if error.errno in _PASSING:
        return errors.RingError(f"cannot listen on {socket} now: {error.strerror}")
    return errors.ConfigError(
        f"ipc.socket: cannot listen on {socket}: {error.strerror or error}; choose a directory "
        "that the daemon may write to"
    )
