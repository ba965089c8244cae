"""Waiting for many files at once: epoll itself on Linux, elsewhere what :mod:`selectors` has.

That is kqueue on macOS. It would be epoll on Linux, too, by way of two functions for each look.
"""

from __future__ import annotations

import select
import selectors
import sys
from typing import Protocol

if sys.platform == "linux":
    EVENT_READ, EVENT_WRITE = select.EPOLLIN, select.EPOLLOUT
else:
    EVENT_READ, EVENT_WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

EVENTS = EVENT_READ | EVENT_WRITE
"""An event that has more bits is an error, or an end: whatever the file is watched for."""


class Poller(Protocol):
    """Files are known by their descriptors."""

    def register(self, fd: int, events: int, /) -> None:
        """Watch a file for *events*."""

    def modify(self, fd: int, events: int, /) -> None:
        """Watch it for others."""

    def unregister(self, fd: int, /) -> None:
        """Watch it no more; OSError if it has been closed before."""

    def poll(self, timeout: float | None, /) -> list[tuple[int, int]]:
        """Return which files are ready for what, within *timeout* seconds (None: no limit)."""

    def close(self) -> None:
        """Release the descriptor."""


class SelectorPoller:
    """A poller on any system."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close

    def register(self, fd: int, events: int) -> None:
        """See :class:`Poller`."""
        self._selector.register(fd, _plain(events))

    def modify(self, fd: int, events: int) -> None:
        """See :class:`Poller`."""
        self._selector.modify(fd, _plain(events))

    def unregister(self, fd: int) -> None:
        """See :class:`Poller`."""
        self._selector.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """See :class:`Poller`."""
        return [(key.fd, _native(events)) for key, events in self._selector.select(timeout)]


def _plain(events: int) -> int:
    """Return *events* in the words of :mod:`selectors`."""
    read = selectors.EVENT_READ if events & EVENT_READ else 0
    return read | (selectors.EVENT_WRITE if events & EVENT_WRITE else 0)


def _native(events: int) -> int:
    read = EVENT_READ if events & selectors.EVENT_READ else 0
    return read | (EVENT_WRITE if events & selectors.EVENT_WRITE else 0)


def poller() -> Poller:
    """Return the fastest one that this system has."""
    if sys.platform == "linux":
        return select.epoll()
    return SelectorPoller()
