"""How the pool wakes the thread that gives memory back, from anywhere, finalisers included."""

from __future__ import annotations

import os
from collections.abc import Callable


class Bell:
    """Calls *wake*, which needs no lock, once after each :attr:`armed` = True."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.armed = False
        """Whether a thread sleeps that is to be woken."""
        self.rung = False
        """Whether it was."""
        self._wake = wake
        self._pid = os.getpid()

    def ring(self) -> None:
        """Wake the sleeper, if there is one; a forked child leaves its parent's alone."""
        if self.armed and self._pid == os.getpid():
            self.armed, self.rung = False, True
            self._wake()

    def hear(self, _gone: object) -> None:
        """Ring: for weak references to call."""
        self.ring()
