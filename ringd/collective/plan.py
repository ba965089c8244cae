"""How a large call is carried out: a machine's lists of instructions, and what they are made for.

A :class:`Plan` is one machine's list of :class:`Send` and of :class:`Receive`. Each list is carried
out in its order, and each instruction waits for a number of the other list: so two counters are
the whole state of a run. What a machine sends as its chunk *i*, its right neighbour receives as its
chunk *i*. Data goes rightwards only. What needs no other machine is a list of its own,
:class:`Local`.

A plan knows no ranks of the group but machines: all ranks of one have, to it, one input and one
result (:mod:`ringd.collective.arrange` says how those are put together). So a *rank* in a plan is a
machine's place among those that take part.

The plans are made in :mod:`ringd.collective.ring_plans` (the fewest bytes),
:mod:`ringd.collective.chain_plans` (one rank after the other) and
:mod:`ringd.collective.block_plans` (a block for each rank).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ringd.collective.codec import CODECS, Codec

MIN_CHUNK_BYTES = 64 * 1024
"""Below this a chunk costs more in calls than its overlap gains: with 32 KiB, four members on two
cores took 15 % longer for 256 KiB, and their daemons a fifth more processor time."""
MAX_PASSING = 16
"""Chunks for others that a machine holds at most, where a plan passes them on: more than twice what
the plans take round together, so that no machine waits for another in a circle."""
DEFAULT_CHUNK_BYTES = 512 * 1024
"""Half of it costs four members on two cores 4 % of their speed; twice as much gains 4 % on
loopback, but would hold up the small calls behind it on a slow link."""


class Place(enum.Enum):
    """Where the elements of a chunk stand."""

    SOURCE = enum.auto()
    """In the own input, which is never written."""
    TARGET = enum.auto()
    """In the own result."""
    SCRATCH = enum.auto()
    """In a buffer of their own, until they have been sent on; there alone they may be encoded."""


class Combine(enum.Enum):
    """What becomes of the elements that came in."""

    STORE = enum.auto()
    """They stay as they are."""
    ADD = enum.auto()
    """Reduced with the own input they are a partial result, in the accumulator's dtype."""
    FINISH = enum.auto()
    """Reduced with the own input, the last one, they are results."""


@dataclass(frozen=True, slots=True)
class Send:
    """A chunk that goes to the right neighbour."""

    after: int
    """How many receives must be complete; the last of them left what is sent. 0: the own input."""
    place: Place
    start: int
    """First element in SOURCE or TARGET. In SCRATCH, the buffer is that of the last receive."""
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
    """First element, where it comes to stand in TARGET."""
    stop: int
    """One past the last element."""
    nbytes: int
    """On the wire."""
    own: int = 0
    """First element of the own input that it is reduced with."""
    into: Place = Place.TARGET
    """Where it stands once it is combined, or decoded."""


@dataclass(frozen=True, slots=True)
class Local:
    """A part of the result that the own input alone makes, at any time.

    It is copied; of a kind that reduces, it is the reduction of the inputs that are here.
    """

    source: int
    """First element there."""
    target: int
    """First element there."""
    count: int


@dataclass(frozen=True, slots=True)
class Task:
    """What a plan is made for; equal on all machines but for the rank.

    Args:
        count: elements of the tensor, where it is not made of a block for each machine.
        itemsize: bytes per element of the tensor.
        accumulator_itemsize: bytes per element of a partial result; equal to *itemsize* unless
            partial results have a dtype of their own.
        size: machines that take part.
        rank: of this machine.
        chunk_bytes: upper limit for a chunk.
        by_rank: whether every sum is to be taken in the order of the ranks.
        root: the machine that has, or is given, what others have not or are not.
        lengths: elements of every machine's block, by rank; of an all-to-all by sender, and for
            each sender by receiver.
        inputs: of all machines together, where these are more than one each.
        passes: whether machines hold no more than :data:`MAX_PASSING` chunks for others.
        wire: the name of the codec by which elements travel; empty for none.
    """

    count: int
    itemsize: int
    accumulator_itemsize: int
    size: int
    rank: int
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    by_rank: bool = False
    root: int = 0
    lengths: tuple[int, ...] = ()
    inputs: int = 0
    passes: bool = False
    wire: str = ""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, but is {self.count}")
        for rank in (self.rank, self.root):
            if not 0 <= rank < self.size:
                raise ValueError(f"rank {rank} is not in a ring of {self.size}")
        if not 1 <= self.itemsize <= self.accumulator_itemsize <= self.chunk_bytes:
            raise ValueError(
                "needed: 1 <= itemsize <= accumulator_itemsize <= chunk_bytes; given: "
                f"{self.itemsize}, {self.accumulator_itemsize}, {self.chunk_bytes}"
            )
        if self.grain > self.chunk_bytes // self.widest:
            raise ValueError(f"a chunk of {self.chunk_bytes} B has no room for a block to encode")

    @property
    def wide(self) -> bool:
        """Whether partial results have a dtype of their own."""
        return self.accumulator_itemsize != self.itemsize

    @property
    def merges(self) -> bool:
        """Whether what a machine sends first is a partial result, as some have several inputs."""
        return self.inputs > self.size

    @property
    def widest(self) -> int:
        """Bytes of an element that travels, at most: of a partial result, where one is sent on."""
        return self.accumulator_itemsize if self.size > 2 or self.merges else self.itemsize  # noqa: PLR2004

    @property
    def codec(self) -> Codec | None:
        """By which elements travel; None where they travel as they are."""
        return CODECS[self.wire] if self.wire else None

    @property
    def grain(self) -> int:
        """Of how many elements, from the first of a block on, a chunk has a multiple."""
        return CODECS[self.wire].block if self.wire else 1

    def chunks(self, elements: int, wanted: int) -> int:
        """Return in how many chunks to send *elements*: *wanted* of them, if they can be long."""
        longest = self.chunk_bytes // self.widest // self.grain
        fewest = -(-elements // self.grain // longest)
        return max(1, fewest, min(wanted, elements * self.widest // MIN_CHUNK_BYTES))

    def nbytes(self, span: range, *, partial: bool = False) -> int:
        """Return the bytes of the elements *span* on the wire."""
        if self.codec is not None:
            return self.codec.nbytes(len(span))
        return len(span) * (self.accumulator_itemsize if partial else self.itemsize)

    def send(self, after: int, place: Place, span: range, *, partial: bool = False) -> Send:
        """Return the instruction to send the elements *span*."""
        return Send(after, place, span.start, span.stop, self.nbytes(span, partial=partial))

    def arrival(self, place: Place) -> Place:
        """Return where the bytes of elements that belong in *place* go: encoded ones elsewhere."""
        return Place.SCRATCH if self.wire else place

    def store(self, after: int, place: Place, span: range) -> Receive:
        """Return the instruction to receive the elements *span* and leave them as they are."""
        return Receive(
            after,
            self.arrival(place),
            Combine.STORE,
            span.start,
            span.stop,
            self.nbytes(span),
            0,
            place,
        )

    def pieces(self, span: range, parts: int) -> list[range]:
        """Return *span*, the first of which begins a block, in *parts* nearly equal chunks."""
        return pieces(span, parts, self.grain)

    def local(self, parts: list[range], source: int = 0, target: int = 0) -> tuple[Local, ...]:
        """Return the local work on *parts*, which begin at *source* and at *target*."""
        return tuple(Local(part.start + source, part.start + target, len(part)) for part in parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one machine does for one call. It serves every tensor of its kind, so keep it."""

    task: Task
    sends: tuple[Send, ...] = field(repr=False)
    """By chunk number."""
    receives: tuple[Receive, ...] = field(repr=False)
    """By chunk number."""
    local: tuple[Local, ...] = field(repr=False)
    source_count: int
    """Elements of the source."""
    target_count: int
    """Elements of the target."""
    even: bool = False
    """Whether all machines have as many sends as receives, and none of their sends number *i* needs
    more than *i* receives: so each may wait with what it sends for what it receives."""
    passing: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The receives of chunks for others, where these are limited."""
    onward: frozenset[int] = field(init=False, repr=False, compare=False)
    """The receives of results that are sent on as they came, where they are encoded."""

    def __post_init__(self) -> None:
        passing = (i for i, r in enumerate(self.receives) if r.into is Place.SCRATCH)
        object.__setattr__(self, "passing", tuple(passing) if self.task.passes else ())
        onward = (s.after - 1 for s in self.sends if s.place is Place.TARGET)
        object.__setattr__(self, "onward", frozenset(onward if self.task.wire else ()))

    def __len__(self) -> int:
        """Return how many instructions there are."""
        return len(self.sends) + len(self.receives) + len(self.local)


def split(span: range, parts: int, part: int, grain: int = 1) -> range:
    """Return one of *parts* nearly equal parts of *span*, cut only after multiples of *grain*."""
    grains = -(-len(span) // grain)
    return span[grains * part // parts * grain : grains * (part + 1) // parts * grain]


def pieces(span: range, parts: int, grain: int = 1) -> list[range]:
    """Return *span* in *parts* nearly equal parts, likewise."""
    return [split(span, parts, part, grain) for part in range(parts)]
