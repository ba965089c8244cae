"""The plans that carry a block from one rank to another, by way of those between.

They are a gather, a scatter and an all-to-all. A block that is not for a rank passes it in a buffer
of the daemon's own.
"""

from __future__ import annotations

from itertools import accumulate

from ringd.collective.plan import Copy, Place, Plan, Receive, Send, Task, pieces

CHUNKS = 2
"""Chunks that a block should have at least, so that it is sent on while it comes in."""

WINDOW = 8
"""Chunks of each block that an all-to-all carries to their places before it begins with the next
ones: so many of each that pass here are held in memory of the daemon's own."""


def gather(task: Task) -> Plan:
    """Return the plan of a gather of *count* elements of each rank.

    The block that goes furthest comes first: a rank passes on those of the ranks to its left, up to
    the root's right neighbour, and sends its own last, so that nothing waits here for that.
    """
    parts = pieces(range(task.count), task.chunks(task.count, CHUNKS))
    position = (task.rank - task.root - 1) % task.size  # the root is the last
    at_root = task.rank == task.root
    sends: list[Send] = []
    receives: list[Receive] = []
    for distance in range(position, 0, -1):  # to the rank whose block comes in
        start = (task.rank - distance) % task.size * task.count
        for part in parts:
            if at_root:
                span = range(start + part.start, start + part.stop)
                receives.append(task.store(0, Place.TARGET, span))
            else:
                receives.append(task.store(0, Place.SCRATCH, part))
                sends.append(task.send(len(receives), Place.SCRATCH, part))
    if not at_root:
        sends += [task.send(0, Place.SOURCE, part) for part in parts]
    copies: list[Copy] = []
    if at_root:
        copies = [Copy(p.start, task.rank * task.count + p.start, len(p)) for p in parts]
    given = task.size * task.count if at_root else 0
    return Plan(task, tuple(sends), tuple(receives), tuple(copies), task.count, given)


def scatter(task: Task) -> Plan:
    """Return the plan of a scatter: the block that goes furthest leaves the root first."""
    block = task.block
    parts = pieces(range(block), task.chunks(block, CHUNKS))
    position = (task.rank - task.root) % task.size
    sends: list[Send] = []
    receives: list[Receive] = []
    copies: list[Copy] = []
    if position == 0:
        for distance in range(task.size - 1, 0, -1):
            start = (task.rank + distance) % task.size * block
            for part in parts:
                span = range(start + part.start, start + part.stop)
                sends.append(task.send(0, Place.SOURCE, span))
        copies = [Copy(task.rank * block + p.start, p.start, len(p)) for p in parts]
    else:
        for _further in range(task.size - 1 - position):
            for part in parts:
                receives.append(task.store(0, Place.SCRATCH, part))
                sends.append(task.send(len(receives), Place.SCRATCH, part))
        receives += [task.store(0, Place.TARGET, part) for part in parts]
    taken = 0 if position else task.count
    return Plan(task, tuple(sends), tuple(receives), tuple(copies), taken, block)


def all_to_all(task: Task) -> Plan:
    """Return the plan of an all-to-all, of even blocks or of blocks of the task's *lengths*.

    For each distance, from 1 to n-1, every rank sends its own block for the rank so far to the
    right, then passes on those that come in, until they are there.
    """
    size, rank = task.size, task.rank
    lengths = task.lengths or (task.block,) * size**2

    def length(sender: int, receiver: int) -> int:
        return lengths[sender % size * size + receiver % size]

    starts = list(accumulate((length(rank, other) for other in range(size)), initial=0))
    ends = list(accumulate((length(other, rank) for other in range(size)), initial=0))
    longest = max(lengths)
    windows = -(-task.chunks(longest, CHUNKS) // WINDOW)

    def window(number: int, sender: int, receiver: int, start: int = 0) -> list[range]:
        """Return the chunks of a block that are carried together; *start*: where it stands."""
        block = length(sender, receiver)
        chunks = pieces(range(start, start + block), task.chunks(block, CHUNKS)) if block else []
        return chunks[number * WINDOW : (number + 1) * WINDOW]

    sends: list[Send] = []
    receives: list[Receive] = []
    for number in range(windows):
        for distance in range(1, size):
            receiver = (rank + distance) % size
            own = window(number, rank, receiver, starts[receiver])
            sends += [task.send(0, Place.SOURCE, part) for part in own]
            for hops in range(1, distance):  # which a block that passes has behind it
                sender = rank - hops
                for part in window(number, sender, sender + distance):
                    receives.append(task.store(0, Place.SCRATCH, part))
                    sends.append(task.send(len(receives), Place.SCRATCH, part))
            sender = (rank - distance) % size
            last = window(number, sender, rank, ends[sender])
            receives += [task.store(0, Place.TARGET, part) for part in last]
    own = pieces(range(length(rank, rank)), task.chunks(length(rank, rank), CHUNKS))
    copies = [Copy(starts[rank] + p.start, ends[rank] + p.start, len(p)) for p in own]
    return Plan(task, tuple(sends), tuple(receives), tuple(copies), starts[-1], ends[-1])
