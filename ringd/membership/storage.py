"""Stable storage, as the membership sees it: what is on disk, and what should be."""

from __future__ import annotations

from ringd.membership.actions import Persist

DISK_RETRY = 1.0
"""Seconds between attempts to persist."""


class StableStorage:
    """The two numbers that must outlive this member's daemon.

    They only rise. At most one write is outstanding, always of the newest numbers wanted; one
    that failed is begun again :data:`DISK_RETRY` later.

    Args:
        generation: On disk now.
        incarnation: On disk now.
    """

    def __init__(self, generation: int, incarnation: int) -> None:
        self.stored = Persist(generation, incarnation)
        """What is on disk."""
        self.wanted = self.stored
        """What is on disk or will be."""
        self.retry: float | None = None
        """When :meth:`tick` lets a failed write be begun again; None without one."""
        self._writing: Persist | None = None

    def want(self, *, generation: int | None = None, incarnation: int | None = None) -> None:
        """Have a higher number written."""
        self.wanted = Persist(
            self.wanted.generation if generation is None else generation,
            self.wanted.incarnation if incarnation is None else incarnation,
        )

    def due(self) -> list[Persist]:
        """Begin a write if there is something to write, and nothing in its way."""
        if self._writing is not None or self.retry is not None or self.wanted == self.stored:
            return []
        self._writing = self.wanted
        return [self._writing]

    def persisted(self, generation: int) -> None:
        """Take note that the outstanding write, of *generation*, is on disk."""
        writing = self._writing
        if writing is None or writing.generation != generation:
            raise ValueError(f"generation {generation} was not to be persisted, but {writing}")
        self.stored = writing
        self._writing = None

    def failed(self, now: float) -> None:
        """Take note that the outstanding write failed."""
        if self._writing is None:
            raise ValueError("nothing was to be persisted")
        self._writing = None
        self.retry = now + DISK_RETRY

    def tick(self, now: float) -> None:
        """Let time pass."""
        if self.retry is not None and now >= self.retry:
            self.retry = None
