"""What ranks send each other, and what must arrive: a function of the seed.

The bytes of a message follow from its number, its sender and its receiver, so that one that is
lost, doubled, out of order or from elsewhere shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from chaos.calls import (
    FLOATS,
    INTEGERS,
    PERIOD,
    Array,
    Style,
    deadline,
    differences,
    length,
    tile,
    values_of,
)
from chaos.which import MESSAGE, Which
from ringd.client.messages import BUFFERED
from ringd.collective.call import MAX_TAG
from ringd.collective.reduction import dtype_from_name

TAGS = (0, 1, 7, MAX_TAG)
"""Those under which the receiver names the sender."""

ANY_TAG = 99
"""That under which it does not."""

LEAST = 8
"""Bytes; so many tell a message from any other one."""

MOST = 8 << 20
"""Bytes; eight times of what is sent without waiting for the receiver."""

EMPTY = 0.03
"""Share of the messages that have no bytes at all."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What the messages in the place of one call have in common.

    Attributes:
        name: what sender and receiver compare; empty for nothing.
        timeout: the deadline, in seconds; None for the daemon's.
    """

    tag: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    name: str = ""
    timeout: float | None = None

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Message:
    """What one rank sends another one.

    Attributes:
        which: of the group's calls.
        source, to: the ranks of sender and receiver in the ring over which it goes.
        bits: the first of its elements, which are repeated.
        alike: whether all ranks are given the same.
    """

    which: Which
    source: int
    to: int
    frame: Frame
    bits: Array
    alike: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is sent."""
        return self.frame.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is sent."""
        return self.frame.dtype

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return self.frame.count

    @property
    def buffered(self) -> bool:
        """Whether it is sent without waiting for the receiver."""
        return self.count * self.dtype.itemsize <= BUFFERED

    @property
    def story(self) -> str:
        """Return what it is, for the evidence."""
        return f"message {self.which} under tag {self.frame.tag}, {self.dtype}{self.shape}"

    def fill(self, array: Array, rank: int) -> None:
        """Write it into *array*, of any layout, as its sender does."""
        del rank
        array[...] = self._whole()

    def wrong(self, result: Array | None, rank: int) -> int:
        """Return how many elements of the *result* of *rank* are not, to the bit, what was sent."""
        return differences(result, self._whole() if rank == self.to else None)

    def _whole(self) -> Array:
        whole = np.empty(self.shape, self.dtype)
        tile(whole.reshape(-1), self.bits)
        return whole


@dataclass(frozen=True, slots=True)
class Errand:
    """Messages in the place of one call.

    Attributes:
        messages: all of them.
        anyone: whether their receiver takes them from whoever sends.
        asked: whether receivers ask for them before they send something themselves.
    """

    messages: tuple[Message, ...]
    anyone: bool
    asked: bool


def errand(key: str, style: Style, number: int, size: int) -> Errand | None:
    """Return the messages in the place of call *number* of *size* ranks; None for none.

    *key*: from what the calls of the group follow.
    """
    rng = Random(f"{key}/{number}/messages")
    if size == 1 or rng.random() >= style.messages:
        return None
    way = rng.random()
    if way < 0.3:  # all to one; of one frame until all have voted, as nobody knows whose comes
        to = rng.randrange(size)
        sources = [rank for rank in range(size) if rank != to]
        ways = [(source, to) for source in rng.sample(sources, len(sources))]
        # Without a deadline: where one passes before anything has come, nothing is taken.
        frame = _frame(f"{key}/any {number // style.vote_every}", style, ANY_TAG)
        return Errand(_messages(key, number, ways, frame), anyone=True, asked=False)
    if way < 0.4:  # one to another
        one, other = rng.sample(range(size), 2)
        ways = [(one, other)]
    else:  # all shift
        by = rng.randrange(1, size)
        ways = [(rank, (rank + by) % size) for rank in range(size)]
    name = f"errand {number}" if rng.random() < 0.5 else ""
    frame = _frame(f"{key}/{number}/frame", style, rng.choice(TAGS))
    if rng.random() < EMPTY:
        frame = replace(frame, shape=(0,))
    frame = replace(frame, name=name, timeout=deadline(f"{key}/{number}/messages", style))
    return Errand(_messages(key, number, ways, frame), anyone=False, asked=rng.random() < 0.5)


def shift(key: str, style: Style, which: Which, timeout: float) -> tuple[Message, ...]:
    """Return what the ranks of a part send to the next one, small enough that nobody waits."""
    frame = _frame(f"{key}/{which}", replace(style, largest=BUFFERED // 4), 0)
    frame = replace(frame, timeout=timeout)
    found = []
    for source, rank in enumerate(which.ranks):
        to = (source + 1) % len(which.ranks)
        between = Which(which.number, MESSAGE, (rank, which.ranks[to]), which.index)
        found.append(Message(between, source, to, frame, _bits(key, between, frame)))
    return tuple(found)


def _frame(key: str, style: Style, tag: int) -> Frame:
    rng = Random(key)
    dtype = dtype_from_name(rng.choice(["bool", *INTEGERS, *FLOATS]))
    nbytes = min(MOST, max(LEAST, length(rng, style)))
    count = -(-nbytes // dtype.itemsize)
    flat = count < 2 * LEAST or rng.random() < 0.7
    return Frame(tag, dtype, (count,) if flat else (count // 2, 2))


def _messages(
    key: str, number: int, ways: Iterable[tuple[int, int]], frame: Frame
) -> tuple[Message, ...]:
    found = []
    for way in ways:
        which = Which(number, MESSAGE, way)
        found.append(Message(which, *way, frame, _bits(key, which, frame)))
    return tuple(found)


def _bits(key: str, which: Which, frame: Frame) -> Array:
    """Return any bits at all, also of bool, and of numbers that are none: they arrive as sent."""
    raw = values_of(f"{key}/{which}").bytes(min(PERIOD, frame.count) * frame.dtype.itemsize)
    return np.frombuffer(raw, np.uint8).view(frame.dtype)


def to_anyone(key: str, style: Style, numbers: range, size: int, to: int) -> Iterator[Message]:
    """Return the messages for whoever asks on rank *to*, in the place of these calls."""
    for number in numbers:
        found = errand(key, style, number, size)
        if found is not None and found.anyone and found.messages[0].to == to:
            yield from found.messages
