"""The plans that carry a block from one rank to another, by way of those between.

They are a gather, a scatter and an all-to-all. A block that is not for a rank passes it in a buffer
of the daemon's own.
"""

from __future__ import annotations

from ringd.collective.plan import Copy, Place, Plan, Receive, Send, Task, pieces

CHUNKS = 2
"""Chunks that a block should have at least, so that it is sent on while it comes in."""

WINDOW = 8
"""Chunks of each block that an all-to-all carries to their places before it begins with the next
ones: so many of each that pass here are held in memory of the daemon's own."""


def gather(task: Task) -> Plan:
    """Return the plan of a gather of *count* elements of each rank.

    Each rank sends its own block, then those that come in; the root's right neighbour is furthest.
    """
    parts = pieces(range(task.count), task.chunks(task.count, CHUNKS))
    position = (task.rank - task.root - 1) % task.size  # the root is the last
    at_root = task.rank == task.root
    sends: list[Send] = []
    receives: list[Receive] = []
    if not at_root:
        sends += [task.send(0, Place.SOURCE, part) for part in parts]
    for distance in range(1, position + 1):  # to the rank whose block comes in
        start = (task.rank - distance) % task.size * task.count
        for part in parts:
            if at_root:
                span = range(start + part.start, start + part.stop)
                receives.append(task.store(0, Place.TARGET, span))
            else:
                receives.append(task.store(0, Place.SCRATCH, part))
                sends.append(task.send(len(receives), Place.SCRATCH, part))
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
    """Return the plan of an all-to-all.

    For each distance, from 1 to n-1, every rank sends its own block for the rank so far to the
    right, then passes on those that come in, until they are there.
    """
    size, rank, block = task.size, task.rank, task.block
    parts = pieces(range(block), task.chunks(block, CHUNKS))
    sends: list[Send] = []
    receives: list[Receive] = []

    def at(owner: int, part: range) -> range:
        start = owner % size * block
        return range(start + part.start, start + part.stop)

    for first in range(0, len(parts), WINDOW):
        window = parts[first : first + WINDOW]
        for distance in range(1, size):
            sends += [task.send(0, Place.SOURCE, at(rank + distance, part)) for part in window]
            for hops in range(1, distance + 1):  # which the incoming blocks have behind them
                for part in window:
                    if hops == distance:
                        receives.append(task.store(0, Place.TARGET, at(rank - distance, part)))
                    else:
                        receives.append(task.store(0, Place.SCRATCH, part))
                        sends.append(task.send(len(receives), Place.SCRATCH, part))
    copies = [Copy(at(rank, part).start, at(rank, part).start, len(part)) for part in parts]
    return Plan(task, tuple(sends), tuple(receives), tuple(copies), task.count, task.count)
