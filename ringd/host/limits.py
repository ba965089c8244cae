"""The limit of open files: raised where it is too low for a daemon, and kept away from."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time

OPEN_FILES = 65536
"""Wanted: clients pass segments of memory, and each is a descriptor (macOS starts with 256)."""

RESERVE = 64
"""Descriptors for the daemon's own use: links, files, lookups, what is on its way."""

_SURE = 0.02
"""Seconds for which a count that left no room is relied on: to count thousands takes a while."""


def raise_open_files() -> None:
    """Raise the soft limit of open files as far as is wanted and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_sure_of_room(wanted: int) -> None:
    """Make sure that this process can open *wanted* descriptors now.

    For libraries that end the process where they cannot.

    Raises:
        OSError: it cannot.
    """
    made: list[int] = []
    try:
        for _ in range(wanted):
            made.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 - closed below
    finally:
        for descriptor in made:
            os.close(descriptor)


def is_out_of_files(error: OSError) -> bool:
    """Whether *error* says that this process, or the system, can open no more files."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def out_of_files(error: OSError) -> str:
    """Return what such an *error* means, and what to do."""
    if error.errno == errno.ENFILE:
        return f"the system has no more open files ({error.strerror}): end programs, or allow more"
    return (
        f"too many open files: this process may have {OWN.limit} of them (RLIMIT_NOFILE), and "
        "needs a few more; close some, or allow more (ulimit -n)"
    )


class OpenFiles:
    """This process's descriptors, and whether there is room for more.

    They are counted when that could matter: what was let in since the last count is added to it,
    and it is renewed once that is a quarter of the room that there was.

    Args:
        reserve: Descriptors that are never given away; half of the limit if that is less.
    """

    def __init__(self, reserve: int = RESERVE) -> None:
        self.reserve = reserve
        self._counted = 0
        self._room = 0  # at the last count
        self._let_in = 0  # since then
        self._full_until = 0.0

    @property
    def limit(self) -> int:
        """How many this process may have open."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return 1 << 62 if soft == resource.RLIM_INFINITY else soft

    @property
    def for_programs(self) -> int:
        """How many all programs together may have, if nobody else had any."""
        limit = self.limit
        return limit - min(self.reserve, limit // 2)

    def count(self) -> int:
        """Return how many are open."""
        try:
            return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - one of them lists
        except OSError:  # not even one for that
            return self.limit

    @property
    def room(self) -> int:
        """How many more there is room for above the reserve, as far as is known."""
        return self.for_programs - self._counted - self._let_in

    def refusal(self, wanted: int = 1, *, promised: int = 0, share: float = 1.0) -> str:
        """Return why *wanted* more descriptors cannot be had; empty if they can.

        Args:
            wanted: to be opened now, if the answer is empty.
            promised: to be opened soon by those who were let in before.
            share: of the reserve, that is to be left alone; what is more important leaves less.
        """
        limit = self.limit
        reserve = int(min(self.reserve, limit // 2) * share)
        needed = wanted + promised

        def lacking() -> bool:
            return self._counted + self._let_in + needed > limit - reserve

        if lacking() or 4 * (self._let_in + wanted) > self._room:
            now = time.monotonic()
            if not (lacking() and now < self._full_until):
                self._counted, self._let_in = self.count(), 0
                self._room = limit - reserve - self._counted
                self._full_until = now + _SURE
            if lacking():
                return (
                    f"{self._counted} of at most {limit} open files are in use, and {reserve} are "
                    "kept in reserve (ipc.reserve); raise the limit (LimitNOFILE= of the service, "
                    "ulimit -n), or end programs"
                )
        self._let_in += wanted
        return ""

    def given_back(self, count: int) -> None:
        """So many were closed in favour of those who come now."""
        self._let_in -= count


OWN = OpenFiles()
"""This process has one table of descriptors, and so one of these."""
