"""Who holds a lock file, in its own words: a directory may be shared by several machines."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

MAX_BYTES = 512
"""Of what is read of a lock file."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A daemon that has taken a lock."""

    pid: int
    node: str
    host: str

    @classmethod
    def here(cls, node: str) -> Holder:
        """Return this process, as the member *node*."""
        return cls(os.getpid(), node, socket.gethostname())

    @classmethod
    def read(cls, fd: int) -> Holder | None:
        """Return who wrote the lock file *fd*; None if that is not to be understood."""
        words = os.pread(fd, MAX_BYTES, 0).decode(errors="replace").split()
        try:
            pid, node, host = words
            return cls(int(pid), node, host)
        except ValueError:
            return None

    @property
    def elsewhere(self) -> bool:
        """Whether it runs on another machine, where its process number is of use only there."""
        return self.host != socket.gethostname()

    def write(self, fd: int) -> None:
        """Say so in the lock file *fd*."""
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{self.pid} {self.node} {self.host}\n".encode(errors="replace"), 0)

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, node {self.node}"
