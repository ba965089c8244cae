"""Ctrl-C at any instant, in a program that goes on: raised wherever the library has the thread.

The program's own lines are spared: they could not say what they have done. So an interrupt is
raised while a frame of ringd's is on the stack, also in its clean-up after another interrupt,
and never between two of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypeVar

import ringd

_HOME = str(Path(ringd.__file__).parent / "client")

_Result = TypeVar("_Result")

_shields = 0


def strike(signum: int, frame: FrameType | None) -> None:
    """Handle SIGINT."""
    del signum
    if not _shields and in_library(frame):
        raise KeyboardInterrupt


def in_library(frame: FrameType | None) -> bool:
    """Whether *frame*, or one that called it, is the client library's.

    Other parts of ringd are called by the program itself, to make its calls.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith(_HOME):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Raise no interrupt for a while."""
    global _shields  # noqa: PLW0603 - a process has one
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1


def persist(function: Callable[[], _Result], between: Callable[[], None] = lambda: None) -> _Result:
    """Call *function* until no interrupt ends it; *between* is done after each."""
    while True:
        try:
            return function()
        except KeyboardInterrupt:
            between()


class Made(NamedTuple):
    """How many calls a ring has made, in its stay in the group of this id."""

    join_id: int
    calls: int

    def more_than(self, before: Made) -> bool:
        """Whether one was made since *before*, in this stay or as the first one of the next."""
        return self.calls > (before.calls if self.join_id == before.join_id else 0)


def made(ring: ringd.Ring) -> Made:
    """Return how many calls *ring* has made; what was interrupted can be told by nothing else."""
    with shielded():
        session = ring._stay.group.session
        return Made(session.join_id, session.next_seq)
