"""Ctrl-C at any instant, in a program that goes on: raised wherever the library has the thread.

The program's own lines are spared: they could not say what they have done. So an interrupt is
raised while a frame of ringd's is on the stack, also in its clean-up after another interrupt,
and never between two of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypeVar

import ringd
from ringd.client.messages import End

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
    """How many calls of a sort a ring has made, in its stay in the group of this id."""

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


def spoken(ring: ringd.Ring, ways: Collection[tuple[int, int, int]]) -> Made:
    """Return how often *ring* has sent or asked for a message; *ways*: sender, receiver, tag."""
    with shielded():
        group = ring._stay.group
        session = group.session
        ends = [end for end in list(group.ends.values()) if isinstance(end, End)]
        of = [end.session for end in ends if end.of is session and end.key in ways]
        return Made(session.join_id, sum(end.next_seq for end in of))


def lingers(ring: ringd.Ring) -> bool:
    """Whether closing *ring* waits for receivers of what it has sent."""
    with shielded():
        ends = list(ring._stay.group.ends.values())
        return any(isinstance(end, End) and end.sends_on for end in ends)
