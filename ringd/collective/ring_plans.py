"""The plans that move the fewest bytes: all ranks send at once, each another part of the tensor.

*count* elements are split into *n* segments, one for each rank, and every segment into *k* chunks.
What a rank sends at step *t + 1* is what it received at step *t*, *k* chunks ago.

* *reduce-scatter*, n-1 steps: what is received is reduced with the own input. A segment's sum
  starts at one rank and is complete n-1 ranks further on, the last time that it is received.
* *all-gather*, n-1 steps: complete segments travel on, unchanged.
* *all-reduce*: one after the other, without a break between them.

Each element is completed by one rank, so all ranks get the same bits.
"""

from __future__ import annotations

from itertools import accumulate

from ringd.collective.plan import Combine, Place, Plan, Receive, Send, Task, split

MIN_CHUNKS = 2
"""Chunks that a segment should have at least, so that receiving, reducing and sending overlap."""

WINDOW = 8
"""Chunks of a segment that a reduce-scatter takes round before it begins with the next ones: as
they have no place in the result, they are held in memory of the daemon's own."""


def ring_all_reduce(task: Task) -> Plan:
    """Return the plan of an all-reduce: 2(n-1)/n of the tensor over each link.

    At step *t*, rank *r* sends segment *r - t* and receives segment *r - t - 1* (mod n). So the sum
    of a segment starts at the rank of its number.
    """
    size, rank, whole, grain = task.size, task.rank, range(task.count), task.grain
    longest = -(-task.count // (size * grain)) * grain
    k = task.chunks(longest, MIN_CHUNKS)  # all members must find the same k
    reduced = (size - 1) * k  # chunks of the reduce-scatter
    chunks = range(2 * reduced)
    partial = Place.SCRATCH if task.wide else Place.TARGET

    def span(index: int, segment: int) -> range:
        return split(split(whole, size, segment % size, grain), k, index % k, grain)

    def is_partial(index: int) -> bool:
        # An input is exact in its own dtype, and so is the result: only what lies between is wide.
        return (0 if task.merges else k) <= index < reduced

    def send(index: int) -> Send:
        start = partial if is_partial(index) else Place.TARGET
        return task.send(
            max(0, index - k + 1),
            Place.SOURCE if index < k else start,
            span(index, rank - index // k),
            partial=is_partial(index),
        )

    def receive(index: int) -> Receive:
        elements = span(index, rank - index // k - 1)
        # A complete segment is made of, and overwrites, what was sent n-1 steps before.
        after = max(0, index - reduced + 1)
        if index >= reduced:
            return task.store(after, Place.TARGET, elements)
        last = index >= reduced - k
        return Receive(
            after,
            task.arrival(partial if is_partial(index) else Place.TARGET),
            Combine.FINISH if last else Combine.ADD,
            elements.start,
            elements.stop,
            task.nbytes(elements, partial=is_partial(index)),
            elements.start,
            Place.TARGET if last else partial,
        )

    local = () if size > 1 else task.local(task.pieces(whole, k))
    sends, receives = tuple(map(send, chunks)), tuple(map(receive, chunks))
    return Plan(task, sends, receives, local, task.count, task.count, even=True)


def ring_reduce_scatter(task: Task) -> Plan:
    """Return the plan of a reduce-scatter of a block for each rank, of the task's *lengths*.

    At step *t*, rank *r* sends segment *r - t - 1* and receives segment *r - t - 2* (mod n), the
    last time its own. So the sum of a segment starts one rank after that of its number. With even
    lengths a link carries (n-1)/n of the tensor.
    """
    size, rank = task.size, task.rank
    ends = list(accumulate(task.lengths, initial=0))
    blocks = [task.pieces(range(n), task.chunks(n, MIN_CHUNKS)) for n in task.lengths]
    sends: list[Send] = []
    receives: list[Receive] = []
    for first in range(0, max(map(len, blocks)), WINDOW):
        came: list[int] = []  # the receives of the step before
        for step in range(size - 1):
            segment = (rank - step - 1) % size
            window = blocks[segment][first : first + WINDOW]
            mine = [_shift(part, ends[segment]) for part in window]
            if step == 0:
                sends += [task.send(0, Place.SOURCE, span, partial=task.merges) for span in mine]
            else:
                for after, span in zip(came, mine, strict=True):
                    sends.append(task.send(after, Place.SCRATCH, span, partial=True))
            segment = (rank - step - 2) % size
            came = []
            for part in blocks[segment][first : first + WINDOW]:
                receives.append(_add(task, part, ends[segment] + part.start, step))
                came.append(len(receives))
    local = () if size > 1 else task.local(blocks[0])
    even = len({*map(len, blocks)}) == 1
    return Plan(task, tuple(sends), tuple(receives), local, ends[-1], task.lengths[rank], even)


def _add(task: Task, part: range, own: int, step: int) -> Receive:
    """Return the receive of *part* of a segment in a reduce-scatter, which is added to."""
    partial, last = step > 0 or task.merges, step == task.size - 2
    wide = partial and task.wide
    return Receive(
        0,
        task.arrival(Place.TARGET if last and not wide else Place.SCRATCH),
        Combine.FINISH if last else Combine.ADD,
        part.start,
        part.stop,
        task.nbytes(part, partial=partial),
        own,
        Place.TARGET if last else Place.SCRATCH,
    )


def ring_all_gather(task: Task) -> Plan:
    """Return the plan of an all-gather of a block of each rank, of the task's *lengths*.

    At step *t*, rank *r* sends the block of rank *r - t* and receives that of *r - t - 1* (mod n).
    """
    size, rank, lengths = task.size, task.rank, task.lengths
    ends = list(accumulate(lengths, initial=0))

    def block(of: int) -> list[range]:
        of %= size
        return task.pieces(range(ends[of], ends[of + 1]), task.chunks(lengths[of], MIN_CHUNKS))

    own = [_shift(part, -ends[rank]) for part in block(rank)]
    sends = [task.send(0, Place.SOURCE, part) for part in own if size > 1]
    receives: list[Receive] = []
    for step in range(1, size):
        for part in block(rank - step):
            receives.append(task.store(0, Place.TARGET, part))
            if step < size - 1:
                sends.append(task.send(len(receives), Place.TARGET, part))
    local = task.local(own, target=ends[rank])
    even = len({task.chunks(length, MIN_CHUNKS) for length in lengths}) == 1
    return Plan(task, tuple(sends), tuple(receives), local, lengths[rank], ends[-1], even)


def _shift(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)
