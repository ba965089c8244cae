"""Who sends which range of elements when: the ring all-reduce as plain indices.

*count* elements are split into *n* segments, one per member, and every segment into *k*
chunks. A run has 2(n-1) steps. At step *t*, rank *r* sends segment *r - t* and receives
segment *r - t - 1* (mod n):

* steps 0 .. n-2, *reduce-scatter*: what is received is reduced with the own input; after the
  last of these steps, the received segment is complete;
* steps n-1 .. 2n-3, *all-gather*: complete segments travel on, unchanged.

What a rank sends at step *t + 1* is what it received at step *t*, so one number tells the
whole state: chunk *i* (chunk ``i % k`` of step ``i // k``) may be sent as soon as chunk
*i - k* has been received, and the first *k* at once. Both directions go in the order of *i*.

A segment's sum starts at the rank of the segment's number and goes rightwards: the order is
fixed by the plan, and each segment is completed by one member, so all ranks get the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MIN_CHUNKS = 2
"""Chunks that a segment should have at least, so that receiving, reducing and sending overlap."""
MIN_CHUNK_BYTES = 32 * 1024
"""Below this a chunk costs more in calls than its overlap gains."""
DEFAULT_CHUNK_BYTES = 512 * 1024
"""Half of it costs four members on two cores 4 % of their speed; twice as much gains 4 % on
loopback, but would hold up the small calls behind it on a slow link."""


@dataclass(frozen=True, slots=True)
class ChunkSpec:
    """One chunk: a range of elements and how they travel."""

    start: int
    """First element."""
    stop: int
    """One past the last element."""
    step: int
    wide: bool
    """Travels in the accumulator's dtype: a partial result, not yet rounded."""
    nbytes: int
    """On the wire."""


@dataclass(frozen=True, slots=True)
class RingPlan:
    """The plan of one rank for one all-reduce.

    Args:
        count: elements of the tensor, 0 or more.
        itemsize: bytes per element of the tensor.
        accumulator_itemsize: bytes per element of a partial result; equal to *itemsize* unless
            partial results have a dtype of their own.
        size: members of the ring.
        rank: of this member.
        chunk_bytes: upper limit for a chunk, counted in the accumulator's dtype. Must be equal
            on all members, like all of the above but the rank.

    Attributes:
        chunks_per_segment: *k*, equal on all members.
        chunks: *N* = 2(n-1)k, how many chunks are sent, and how many are received.
        sends: what this rank sends, by chunk number.
        receives: what it receives, by chunk number.

    Both lists are made at once: a plan serves every tensor of its kind, so keep it.
    """

    count: int
    itemsize: int
    accumulator_itemsize: int
    size: int
    rank: int
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    chunks_per_segment: int = field(init=False)
    chunks: int = field(init=False)
    sends: tuple[ChunkSpec, ...] = field(init=False, repr=False)
    receives: tuple[ChunkSpec, ...] = field(init=False, repr=False)

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
        longest = -(-self.count // self.size)  # all members must find the same k
        fewest = -(-longest // (self.chunk_bytes // self.accumulator_itemsize))
        wanted = min(MIN_CHUNKS, longest * self.accumulator_itemsize // MIN_CHUNK_BYTES)
        k = max(1, fewest, wanted)
        object.__setattr__(self, "chunks_per_segment", k)
        chunks = 2 * (self.size - 1) * k
        places = [divmod(index, k) for index in range(chunks)]
        sends = tuple(self._chunk(step, part, self.rank - step) for step, part in places)
        receives = tuple(self._chunk(step, part, self.rank - step - 1) for step, part in places)
        object.__setattr__(self, "chunks", chunks)
        object.__setattr__(self, "sends", sends)
        object.__setattr__(self, "receives", receives)

    def _chunk(self, step: int, part: int, segment: int) -> ChunkSpec:
        size, k = self.size, self.chunks_per_segment
        segment %= size
        first = self.count * segment // size
        length = self.count * (segment + 1) // size - first
        start = first + length * part // k
        stop = first + length * (part + 1) // k
        # The input is exact in its own dtype, and so is the result: only what lies between is wide.
        wide = 0 < step < size - 1 and self.accumulator_itemsize != self.itemsize
        itemsize = self.accumulator_itemsize if wide else self.itemsize
        return ChunkSpec(start, stop, step, wide, (stop - start) * itemsize)
