"""How a large call of all ranks is carried out by machines, each for all ranks that it hosts.

A machine has one input and one result, which are put together from those of its ranks:

* Inputs that are reduced are alike; the machine's input is the reduction of them.
* Results that all ranks get are alike; each chunk is written to all of them when it is complete.
* All else is one after the other, by machine, then by sender, then by receiver: so what goes from
  one machine to another is one block.

All that follows from the flags in a kind's row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.kinds import Kind, ShapeOf
from ringd.collective.layout import Layout
from ringd.collective.narrow import NarrowTransfer
from ringd.collective.plan import Plan, Task
from ringd.collective.reduction import Array, Reduction
from ringd.collective.spread import Segment, Spread, joined
from ringd.collective.transfer import Crew, ScratchPool, Transfer


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What a machine does for one call. It serves every tensor of its kind, so keep it."""

    plan: Plan
    source: tuple[Segment, ...]
    """The machine's input, in those of its ranks."""
    target: tuple[Segment, ...]
    """Its result, in those of its ranks."""
    source_counts: tuple[int, ...]
    """Elements of the input of each of its ranks."""
    target_counts: tuple[int, ...]
    """Elements of the result of each of its ranks."""

    def __len__(self) -> int:
        """Return how many instructions and segments there are."""
        return len(self.plan) + len(self.source) + len(self.target)

    def begin(
        self,
        reduction: Reduction | None,
        sources: Sequence[Array],
        targets: Sequence[Array | None],
        scratch: ScratchPool,
        *,
        crew: Crew | None = None,
    ) -> Transfer:
        """Return the transfer of these arrays.

        Args:
            reduction: what to compute, over all ranks; None where nothing is reduced.
            sources: the inputs of the ranks here, 1-d; empty where there is none.
            targets: for their results, likewise; None for a rank that needs none.
            scratch: as of a transfer.
            crew: likewise.
        """
        for name, given, counts in (
            ("inputs", sources, self.source_counts),
            ("results", targets, self.target_counts),
        ):
            for array, count in zip(given, counts, strict=True):
                if array is not None and array.shape != (count,):
                    raise ValueError(f"{name}: an array has shape {array.shape}, not ({count},)")
        source = Spread(sources, self.source)
        target = Spread(*self._wanted(targets, sources[0].dtype))
        task = self.plan.task
        if task.wire and task.size > 1:
            return NarrowTransfer(self.plan, reduction, source, target, scratch)
        return Transfer(self.plan, reduction, source, target, scratch, crew=crew)

    def _wanted(
        self, targets: Sequence[Array | None], dtype: np.dtype[Any]
    ) -> tuple[Sequence[Array], Sequence[Segment]]:
        """Return an array for each of *targets*, and the segments of those that are written."""
        given = [target for target in targets if target is not None]
        if len(given) == len(targets):
            return given, self.target
        segments = []
        for segment in self.target:  # of those alike, one is enough if nobody needs any
            needed = tuple(i for i in segment.arrays if targets[i] is not None)
            written = needed or segment.arrays[:1]
            segments.append(Segment(segment.start, segment.stop, written))
        written_to = {i for segment in segments for i in segment.arrays}
        arrays = [
            np.empty(count if i in written_to else 0, dtype) if target is None else target
            for i, (target, count) in enumerate(zip(targets, self.target_counts, strict=True))
        ]
        return arrays, segments


def arrange(
    calls: Sequence[Call],
    layout: Layout,
    *,
    itemsize: int,
    accumulator_itemsize: int,
    chunk_bytes: int,
    by_rank: bool,
) -> Arrangement:
    """Return what the machine of *layout* does for its ranks.

    Args:
        calls: everybody's, by rank; they fit together.
        layout: where the ranks are.
        itemsize: as of a task.
        accumulator_itemsize: likewise.
        chunk_bytes: likewise.
        by_rank: likewise; machine by machine, and within a machine by rank.
    """
    call, kind = calls[0], kinds.of(calls[0])
    lengths = _lengths(kind, calls, layout)
    task = Task(
        count=0 if lengths else math.prod(call.shape),
        itemsize=itemsize,
        accumulator_itemsize=accumulator_itemsize,
        size=len(layout.machines),
        rank=layout.position,
        chunk_bytes=chunk_bytes,
        by_rank=by_rank,
        root=layout.machine_of(kinds.root_of(call)),
        lengths=lengths,
        inputs=layout.size,
        passes=kind.passes,
        wire=call.wire,
    )
    return Arrangement(
        kind.plan(task),
        _source(kind, calls, layout),
        _target(kind, calls, layout),
        _counts(kinds.source_count, calls, layout),
        _counts(kinds.target_count, calls, layout),
    )


def _lengths(kind: Kind, calls: Sequence[Call], layout: Layout) -> tuple[int, ...]:
    """Return the elements of each machine's block; empty for a tensor that is not divided."""
    machines, anyone = layout.machines, kinds.root_of(calls[0])

    def between(senders: Sequence[int], receivers: Sequence[int]) -> int:
        return sum(kinds.sent(calls, s, r) for s in senders for r in receivers)

    if kind.divides and kind.joins:
        return tuple(between(senders, receivers) for senders in machines for receivers in machines)
    if kind.divides:
        return tuple(between((anyone,), receivers) for receivers in machines)
    if kind.joins:
        return tuple(between(senders, (anyone,)) for senders in machines)
    return ()


def _source(kind: Kind, calls: Sequence[Call], layout: Layout) -> tuple[Segment, ...]:
    """Return the machine's input: to each machine, from each sender here, for each receiver."""
    groups = _groups(kind.source, calls, layout, alike=kind.reduces)
    if not kind.divides:
        return _whole(groups, _counts(kinds.source_count, calls, layout))
    cuts = [
        _cut(kinds.sent(calls, layout.local[group[0]], receiver) for receiver in range(layout.size))
        for group in groups
    ]
    return joined(
        Segment(*cut[receiver], group)
        for machine in layout.machines
        for group, cut in zip(groups, cuts, strict=True)
        for receiver in machine
    )


def _target(kind: Kind, calls: Sequence[Call], layout: Layout) -> tuple[Segment, ...]:
    """Return the machine's result: from each machine, from each sender, for each receiver here."""
    groups = _groups(kind.target, calls, layout, alike=not kind.divides)
    if not kind.joins:
        return _whole(groups, _counts(kinds.target_count, calls, layout))
    cuts = [
        _cut(kinds.sent(calls, sender, layout.local[group[0]]) for sender in range(layout.size))
        for group in groups
    ]
    return joined(
        Segment(*cut[sender], group)
        for machine in layout.machines
        for sender in machine
        for group, cut in zip(groups, cuts, strict=True)
    )


def _groups(
    shape: ShapeOf, calls: Sequence[Call], layout: Layout, *, alike: bool
) -> list[tuple[int, ...]]:
    """Return the numbers of the arrays of ranks here that have a *shape*: together, or each."""
    having = [
        number
        for number, rank in enumerate(layout.local)
        if shape(calls[rank], rank, layout.size) is not None
    ]
    return [tuple(having)] if alike and having else [(number,) for number in having]


def _whole(groups: Sequence[tuple[int, ...]], counts: Sequence[int]) -> tuple[Segment, ...]:
    return joined(Segment(0, counts[group[0]], group) for group in groups)


def _cut(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """Return where each of the blocks of an array begins and ends."""
    return list(pairwise(accumulate(lengths, initial=0)))


def _counts(
    count: Callable[[Call, int, int], int], calls: Sequence[Call], layout: Layout
) -> tuple[int, ...]:
    return tuple(count(calls[rank], rank, layout.size) for rank in layout.local)
