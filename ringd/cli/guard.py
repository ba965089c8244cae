"""Ends a program that this process has started, where this process is killed before it can."""

from __future__ import annotations

import subprocess

SHELL = "/bin/sh"

_WAIT = 'read -r ended || kill "$0"'


class Guard:
    """Sends SIGTERM to the process *pid* when this one ends without a call of :meth:`dismiss`.

    However this one ends: the system then closes a pipe, and a shell that reads from it goes on.
    (Linux could have the kernel send the signal; a pipe ends on every system.)

    Raises:
        OSError: There is no shell.
    """

    def __init__(self, pid: int) -> None:
        self._shell = subprocess.Popen(  # noqa: S603 - our own words
            [SHELL, "-c", _WAIT, str(pid)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C that the program survives must not end it
        )

    def dismiss(self) -> None:
        """Leave the process alone: it has ended, and its number may become another's."""
        if self._shell.poll() is None:
            self._shell.communicate(b"\n")
