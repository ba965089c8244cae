"""The plans in which one rank follows the other: broadcast, reduce, and sums in the ranks' order.

The whole tensor is split into *k* chunks, which go from the first rank to the last. Each rank
passes on what it was given, or adds its own input to it. A link carries the whole tensor, or twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringd.collective.plan import Combine, Local, Place, Plan, Receive, Send, Task

CHAIN_CHUNKS = 4
"""Chunks that a tensor should have at least, for each link that a chunk crosses before it is where
it belongs: a pipeline of *k* chunks over *m* links takes (k + m)/k times as long as one link."""

PASSING_LAG = 4
"""Chunks, for each rank, by which results that pass follow the partial sums: so many may be on
their way."""


def chain_broadcast(task: Task) -> Plan:
    """Return the plan of a broadcast: from the root rightwards, to the root's left neighbour."""
    position = (task.rank - task.root) % task.size
    parts = _parts(task)
    sends: list[Send] = []
    receives: list[Receive] = []
    local: tuple[Local, ...] = ()
    if position == 0:
        local = task.local(parts)
    else:
        receives = [task.store(0, Place.TARGET, part) for part in parts]
    if position < task.size - 1:
        place = Place.TARGET if position else Place.SOURCE
        sends = [task.send(i + 1 if position else 0, place, part) for i, part in enumerate(parts)]
    taken = 0 if position else task.count
    return Plan(task, tuple(sends), tuple(receives), local, taken, task.count)


def point_to_point(task: Task) -> Plan:
    """Return the plan of a message: from the root to the other machine, or within the only one."""
    parts = _parts(task)
    if task.size == 1:
        return Plan(task, (), (), task.local(parts), task.count, task.count)
    if task.rank == task.root:
        sends = tuple(task.send(0, Place.SOURCE, part) for part in parts)
        return Plan(task, sends, (), (), task.count, 0)
    receives = tuple(task.store(0, Place.TARGET, part) for part in parts)
    return Plan(task, (), receives, (), 0, task.count)


def chain_all_reduce(task: Task) -> Plan:
    """Return the plan that adds every element in the order of the ranks, for all of them.

    The chunks go from rank 0 to rank n-1, where they are complete, and on round the ring, from
    there to rank n-2.
    """
    parts = [_Part(part, None, part.start) for part in _parts(task)]
    return _by_rank(task, parts, task.count)


def chain_reduce(task: Task) -> Plan:
    """Return the plan of a reduce: the chunks end at the root, where they are complete.

    They begin at its right neighbour; *by_rank*, at rank 0, and go on to the root from rank n-1.
    """
    parts = [_Part(part, task.root, part.start) for part in _parts(task)]
    given = task.count if task.rank == task.root else 0
    if task.by_rank:
        return _by_rank(task, parts, given)
    position, last = (task.rank - task.root - 1) % task.size, task.size - 1
    if last == 0:
        spans = task.pieces(range(task.count), task.chunks(task.count, 1))
        return Plan(task, (), (), task.local(spans), task.count, given)
    receives = tuple(_add(task, part, position, last) for part in parts) if position else ()
    sends = tuple(
        _send_partial(task, part, position, number + 1)
        for number, part in enumerate(parts if position < last else ())
    )
    return Plan(task, sends, receives, (), task.count, given)


def chain_reduce_scatter(task: Task) -> Plan:
    """Return the plan that adds in the order of the ranks, and gives each rank its own block.

    Blocks have the task's *lengths*.
    """
    parts: list[_Part] = []
    start = 0
    for owner, length in enumerate(task.lengths):
        chunks = task.pieces(range(start, start + length), task.chunks(length, CHAIN_CHUNKS))
        parts += [_Part(chunk, owner, chunk.start - start) for chunk in chunks]
        start += length
    return _by_rank(task, parts, task.lengths[task.rank])


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk's elements, and who is given them."""

    span: range
    """In the input."""
    owner: int | None
    """None for all ranks."""
    target: int
    """First element in the owner's result."""

    def belongs_to(self, rank: int) -> bool:
        return self.owner is None or self.owner == rank


def _by_rank(task: Task, parts: list[_Part], given: int) -> Plan:
    """Return the plan that adds *parts* from rank 0 to rank n-1, and takes them to their owners.

    A result that passes a rank stands in a buffer there. So it follows the partial sums a
    pipeline's length behind its own, and not all of them.

    Args:
        task: what the plan is made for.
        parts: with the same owner, or None, for all ranks.
        given: elements of this rank's result.
    """
    chain = _ByRank(task)
    local: tuple[Local, ...] = ()
    passing = any(part.owner is not None for part in parts)
    lag = PASSING_LAG * task.size if passing else len(parts)
    for number in range(len(parts) + lag if task.size > 1 else 0):
        if number < len(parts):
            chain.add(parts[number])
        if number >= lag:
            chain.pass_on(parts[number - lag], number - lag)
    if task.size == 1:
        local = tuple(Local(part.span.start, part.target, len(part.span)) for part in parts)
    count = sum(len(part.span) for part in parts)
    return Plan(task, tuple(chain.sends), tuple(chain.receives), local, count, given)


class _ByRank:
    """The instructions of one rank, part by part."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.rank, self.last = task.rank, task.size - 1
        self.sends: list[Send] = []
        self.receives: list[Receive] = []

    def add(self, part: _Part) -> None:
        """Add the own input to *part*, which is complete at the last rank."""
        task, rank, last = self.task, self.rank, self.last
        if rank > 0:
            self.receives.append(_add(task, part, rank, last))
        if rank < last:
            self.sends.append(_send_partial(task, part, rank, len(self.receives)))
        elif _end(part, last) != last:  # its partial sums are the results
            self.sends.append(_send_result(task, part, len(self.receives)))

    def pass_on(self, part: _Part, number: int) -> None:
        """Receive the result of *part*, and send it on, up to the rank where its way ends."""
        end = _end(part, self.last)
        if self.rank > end or self.last in {self.rank, end}:
            return
        # A result is made of, and overwrites, what was sent before.
        after = number + 1 if part.owner is None else 0
        place = Place.TARGET if part.belongs_to(self.rank) else Place.SCRATCH
        self.receives.append(self.task.store(after, place, _target(part)))
        if self.rank < end:
            self.sends.append(_send_result(self.task, part, len(self.receives)))


def _end(part: _Part, last: int) -> int:
    """Return the rank where the way of a result ends, which begins at *last*."""
    return last - 1 if part.owner is None else part.owner


def _send_partial(task: Task, part: _Part, position: int, after: int) -> Send:
    """Return the send of a partial sum, or at position 0 of the input, in a chain."""
    if position == 0:
        return task.send(0, Place.SOURCE, part.span, partial=task.merges)
    return task.send(after, _partial(task, part), part.span, partial=True)


def _add(task: Task, part: _Part, position: int, last: int) -> Receive:
    """Return the receive of a partial sum, or at position 1 of an input, which is added to."""
    # An input is exact in its own dtype.
    partial, complete = position > 1 or task.merges, position == last
    if complete:
        into = Place.TARGET if part.belongs_to(task.rank) else Place.SCRATCH
    else:
        into = _partial(task, part)
    in_target = part.owner is None or into is Place.TARGET
    target = _target(part)
    return Receive(
        0,
        task.arrival(Place.TARGET if in_target and not (partial and task.wide) else Place.SCRATCH),
        Combine.FINISH if complete else Combine.ADD,
        target.start,
        target.stop,
        task.nbytes(target, partial=partial),
        part.span.start,
        into,
    )


def _partial(task: Task, part: _Part) -> Place:
    """Return where partial sums stand: in the result, if there is room of that dtype."""
    return Place.TARGET if part.owner is None and not task.wide else Place.SCRATCH


def _send_result(task: Task, part: _Part, after: int) -> Send:
    place = Place.TARGET if part.belongs_to(task.rank) else Place.SCRATCH
    return task.send(after, place, _target(part))


def _target(part: _Part) -> range:
    return range(part.target, part.target + len(part.span))


def _parts(task: Task) -> list[range]:
    return task.pieces(
        range(task.count), task.chunks(task.count, CHAIN_CHUNKS * max(1, task.size - 1))
    )
