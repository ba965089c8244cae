"""The plans that carry a block from one rank to another, by way of those between.

They are a gather, a scatter and an all-to-all. A block that is not for a rank passes it in a buffer
of the daemon's own. Blocks have the task's *lengths*.
"""

from __future__ import annotations

from itertools import accumulate

from ringd.collective.plan import Local, Place, Plan, Receive, Send, Task, pieces

CHUNKS = 2
"""Chunks that a block should have at least, so that it is sent on while it comes in."""

WINDOW = 8
"""Chunks of each block that an all-to-all carries to their places before it begins with the next
ones: so many of each that pass here are held in memory of the daemon's own."""


def gather(task: Task) -> Plan:
    """Return the plan of a gather of a block of each rank.

    The block that goes furthest comes first: a rank passes on those of the ranks to its left, up to
    the root's right neighbour, and sends its own last, so that nothing waits here for that.
    """
    size, rank = task.size, task.rank
    ends = list(accumulate(task.lengths, initial=0))
    position = (rank - task.root - 1) % size  # the root is the last
    at_root = rank == task.root
    sends: list[Send] = []
    receives: list[Receive] = []
    for distance in range(position, 0, -1):  # to the rank whose block comes in
        sender = (rank - distance) % size
        for part in _parts(task, sender, ends[sender]):
            if at_root:
                receives.append(task.store(0, Place.TARGET, part))
            else:
                receives.append(task.store(0, Place.SCRATCH, part))
                sends.append(task.send(len(receives), Place.SCRATCH, part))
    own = _parts(task, rank)
    local: tuple[Local, ...] = ()
    if at_root:
        local = task.local(own, target=ends[rank])
    else:
        sends += [task.send(0, Place.SOURCE, part) for part in own]
    given = ends[-1] if at_root else 0
    return Plan(task, tuple(sends), tuple(receives), local, task.lengths[rank], given)


def scatter(task: Task) -> Plan:
    """Return the plan of a scatter: the block that goes furthest leaves the root first."""
    size, rank = task.size, task.rank
    ends = list(accumulate(task.lengths, initial=0))
    position = (rank - task.root) % size
    sends: list[Send] = []
    receives: list[Receive] = []
    local: tuple[Local, ...] = ()
    for distance in range(size - 1, position, -1):  # from the root to the block's rank
        receiver = (task.root + distance) % size
        for part in _parts(task, receiver, ends[receiver]):
            if position == 0:
                sends.append(task.send(0, Place.SOURCE, part))
            else:
                receives.append(task.store(0, Place.SCRATCH, part))
                sends.append(task.send(len(receives), Place.SCRATCH, part))
    own = _parts(task, rank)
    if position == 0:
        local = task.local(own, source=ends[rank])
    else:
        receives += [task.store(0, Place.TARGET, part) for part in own]
    taken = 0 if position else ends[-1]
    return Plan(task, tuple(sends), tuple(receives), local, taken, task.lengths[rank])


def all_to_all(task: Task) -> Plan:
    """Return the plan of an all-to-all.

    For each distance, from 1 to n-1, every rank sends its own block for the rank so far to the
    right, then passes on those that come in, until they are there.
    """
    size, rank, lengths = task.size, task.rank, task.lengths

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
    local = task.local(own, starts[rank], ends[rank])
    return Plan(task, tuple(sends), tuple(receives), local, starts[-1], ends[-1])


def _parts(task: Task, rank: int, start: int = 0) -> list[range]:
    """Return the chunks of the block of *rank*, of which the first element is *start*."""
    length = task.lengths[rank]
    return pieces(range(start, start + length), task.chunks(length, CHUNKS))
