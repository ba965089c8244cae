"""Lock files, and who holds one, in its own words: several machines may share a directory."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 4096
"""Of what is read of a lock file."""

SUFFIX = ".lock"
"""Appended to the path of a daemon's socket: the lock of whoever is the daemon there."""

_LOOKS, _A_LOOK = 10, 0.005  # seconds


@dataclass(frozen=True, slots=True)
class Holder:
    """A daemon that has taken a lock."""

    pid: int
    node: str
    host: str
    waits: str = ""
    """What it waits for before it opens its socket; empty once that was open."""

    @classmethod
    def here(cls, node: str, waits: str = "") -> Holder:
        """Return this process, as the member *node*."""
        return cls(os.getpid(), node, socket.gethostname(), waits)

    @classmethod
    def read(cls, fd: int) -> Holder | None:
        """Return who wrote the lock file *fd*; None if that is not to be understood."""
        text = os.pread(fd, MAX_BYTES, 0).decode(errors="replace")
        who, _, waits = text.partition("\n")
        try:
            pid, node, host = who.split()
            return cls(int(pid), node, host, waits.strip())
        except ValueError:
            return None

    @classmethod
    def of(cls, path: Path) -> Holder | None:
        """Return who holds the lock file at *path* right now; None if nobody does.

        To find out, the lock is taken for an instant where it is free, which :func:`take` expects.

        Raises:
            OSError: It is not to be read.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return cls.read(fd)
        finally:
            os.close(fd)
        return None

    @property
    def elsewhere(self) -> bool:
        """Whether it runs on another machine, where its process number is of use only there."""
        return self.host != socket.gethostname()

    def write(self, fd: int) -> None:
        """Say so in the lock file *fd*."""
        text = f"{self.pid} {self.node} {self.host}\n"
        if self.waits:
            text += f"{self.waits}\n"
        data = text.encode(errors="replace")[:MAX_BYTES]
        # In this order, so that the first line can be read at any instant.
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, node {self.node}"


def take(fd: int) -> None:
    """Lock the file *fd*.

    Raises:
        BlockingIOError: Somebody holds it, for longer than a look at it takes.
    """
    for _ in range(_LOOKS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_A_LOOK)
        else:
            return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
