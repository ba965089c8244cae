"""Who sends which range of elements when: the ways of a large all-reduce, as lists of instructions.

A :class:`Plan` is one rank's list of :class:`Send` and of :class:`Receive`. Each list is carried
out in its order, and each instruction waits for a number of the other list: so two counters are
the whole state of a run. What a rank sends as its chunk *i*, its right neighbour receives as its
chunk *i*. Data goes rightwards only.

There are two ways. :func:`ring_plan` moves the fewest bytes. *count* elements are split into *n*
segments, one per member, and every segment into *k* chunks. A run has 2(n-1) steps. At step *t*,
rank *r* sends segment *r - t* and receives segment *r - t - 1* (mod n):

* steps 0 .. n-2, *reduce-scatter*: what is received is reduced with the own input; after the
  last of these steps, the received segment is complete;
* steps n-1 .. 2n-3, *all-gather*: complete segments travel on, unchanged.

What a rank sends at step *t + 1* is what it received at step *t*, *k* chunks ago. A segment's
sum starts at the rank of the segment's number and goes rightwards.

:func:`chain_plan` adds all elements in the order of the ranks, wherever they stand. The whole
tensor is split into *k* chunks. They go from rank 0 to rank n-1, each rank adding its own input;
there they are complete, and go on round the ring, from rank n-1 to rank n-2. The ring carries up
to twice the tensor over a link, not 2(n-1)/n times.

Either way each element is completed by one member, so all ranks get the same bits.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

MIN_CHUNKS = 2
"""Chunks that a segment should have at least, so that receiving, reducing and sending overlap."""
CHAIN_CHUNKS = 4
"""The same of a chain, for each link that a chunk crosses before it is complete: a pipeline of *k*
chunks over 2(n-1) links takes 2(k + n-1) chunks' time, where 2k is the least."""
MIN_CHUNK_BYTES = 32 * 1024
"""Below this a chunk costs more in calls than its overlap gains."""
DEFAULT_CHUNK_BYTES = 512 * 1024
"""Half of it costs four members on two cores 4 % of their speed; twice as much gains 4 % on
loopback, but would hold up the small calls behind it on a slow link."""


class Place(enum.Enum):
    """Where the elements of a chunk stand."""

    SOURCE = enum.auto()
    """In the own input, which is never written."""
    TARGET = enum.auto()
    """At their place in the result."""
    SCRATCH = enum.auto()
    """In a buffer of their own, in the accumulator's dtype: a partial result, not yet rounded."""


class Combine(enum.Enum):
    """What becomes of the elements that came in."""

    STORE = enum.auto()
    """They are results."""
    ADD = enum.auto()
    """Reduced with the own input they are a partial result: in SCRATCH, where the accumulator has
    a dtype of its own, else in TARGET."""
    FINISH = enum.auto()
    """Reduced with the own input, the last one, they are results, in TARGET."""


@dataclass(frozen=True, slots=True)
class Send:
    """A chunk that goes to the right neighbour. From SCRATCH it travels as it stands there."""

    after: int
    """How many receives must be complete; the last of them left what is sent. 0: the own input."""
    place: Place
    start: int
    """First element."""
    stop: int
    """One past the last element."""
    nbytes: int
    """On the wire."""


@dataclass(frozen=True, slots=True)
class Receive:
    """A chunk that comes from the left neighbour."""

    after: int
    """How many sends must have left; earlier, it would overwrite a chunk that has not been sent."""
    place: Place
    """Where the bytes go, TARGET or SCRATCH."""
    combine: Combine
    start: int
    """First element."""
    stop: int
    """One past the last element."""
    nbytes: int
    """On the wire."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a plan is made for; equal on all members but for the rank.

    Args:
        count: elements of the tensor, 0 or more.
        itemsize: bytes per element of the tensor.
        accumulator_itemsize: bytes per element of a partial result; equal to *itemsize* unless
            partial results have a dtype of their own.
        size: members of the ring.
        rank: of this member.
        chunk_bytes: upper limit for a chunk, counted in the accumulator's dtype.
    """

    count: int
    itemsize: int
    accumulator_itemsize: int
    size: int
    rank: int
    chunk_bytes: int = DEFAULT_CHUNK_BYTES

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, but is {self.count}")
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a ring of {self.size}")
        if not 1 <= self.itemsize <= self.accumulator_itemsize <= self.chunk_bytes:
            raise ValueError(
                "needed: 1 <= itemsize <= accumulator_itemsize <= chunk_bytes; given: "
                f"{self.itemsize}, {self.accumulator_itemsize}, {self.chunk_bytes}"
            )

    @property
    def partial(self) -> Place:
        """Where partial results stand."""
        wide = self.accumulator_itemsize != self.itemsize
        return Place.SCRATCH if wide else Place.TARGET

    def chunks(self, elements: int, wanted: int) -> int:
        """Return in how many chunks to send *elements*: *wanted* of them, if they can be long."""
        fewest = -(-elements // (self.chunk_bytes // self.accumulator_itemsize))
        return max(1, fewest, min(wanted, elements * self.accumulator_itemsize // MIN_CHUNK_BYTES))

    def send(self, after: int, place: Place, span: range) -> Send:
        """Return the instruction to send the elements *span*."""
        return Send(after, place, span.start, span.stop, self._nbytes(place, span))

    def receive(self, after: int, place: Place, combine: Combine, span: range) -> Receive:
        """Return the instruction to receive the elements *span*."""
        return Receive(after, place, combine, span.start, span.stop, self._nbytes(place, span))

    def _nbytes(self, place: Place, span: range) -> int:
        wide = place is Place.SCRATCH
        return len(span) * (self.accumulator_itemsize if wide else self.itemsize)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one rank does for one all-reduce. It serves every tensor of its kind, so keep it."""

    task: Task
    sends: tuple[Send, ...] = field(repr=False)
    """By chunk number."""
    receives: tuple[Receive, ...] = field(repr=False)
    """By chunk number."""


def split(span: range, parts: int, part: int) -> range:
    """Return one of *parts* nearly equal parts of *span*."""
    return span[len(span) * part // parts : len(span) * (part + 1) // parts]


def ring_plan(task: Task) -> Plan:
    """Return the plan that moves the fewest bytes; the order of a sum depends on its segment."""
    size, rank, whole = task.size, task.rank, range(task.count)
    k = task.chunks(-(-task.count // size), MIN_CHUNKS)  # all members must find the same k
    reduced = (size - 1) * k  # chunks of the reduce-scatter
    chunks = range(2 * reduced)

    def span(index: int, segment: int) -> range:
        return split(split(whole, size, segment % size), k, index % k)

    def place(index: int) -> Place:
        # The input is exact in its own dtype, and so is the result: only what lies between is wide.
        return task.partial if k <= index < reduced else Place.TARGET

    def send(index: int) -> Send:
        start = Place.SOURCE if index < k else place(index)
        return task.send(max(0, index - k + 1), start, span(index, rank - index // k))

    def receive(index: int) -> Receive:
        if index >= reduced:
            combine = Combine.STORE
        else:
            combine = Combine.FINISH if index >= reduced - k else Combine.ADD
        # A complete segment is made of, and overwrites, what was sent n-1 steps before.
        after = max(0, index - reduced + 1)
        return task.receive(after, place(index), combine, span(index, rank - index // k - 1))

    return Plan(task, tuple(map(send, chunks)), tuple(map(receive, chunks)))


def chain_plan(task: Task) -> Plan:
    """Return the plan that adds every element in the order of the ranks."""
    rank, last = task.rank, task.size - 1
    if last == 0:
        return Plan(task, (), ())
    k = task.chunks(task.count, CHAIN_CHUNKS * last)
    chunks = [(i, split(range(task.count), k, i)) for i in range(k)]
    sends: list[Send] = []
    receives: list[Receive] = []
    if rank > 0:
        place = task.partial if rank > 1 else Place.TARGET  # rank 0's input is exact in its dtype
        combine = Combine.FINISH if rank == last else Combine.ADD
        receives += [task.receive(0, place, combine, span) for _, span in chunks]
    if rank == 0:
        sends += [task.send(0, Place.SOURCE, span) for _, span in chunks]
    elif rank < last:
        sends += [task.send(i + 1, task.partial, span) for i, span in chunks]
    before = len(receives) if rank < last else 0  # the last rank's partial sums are the results
    if rank < last:  # a result is made of, and overwrites, what was sent before
        receives += [task.receive(i + 1, Place.TARGET, Combine.STORE, span) for i, span in chunks]
    if rank != last - 1:
        sends += [task.send(before + i + 1, Place.TARGET, span) for i, span in chunks]
    return Plan(task, tuple(sends), tuple(receives))
