"""The table of kinds: what each kind of call takes, gives and computes, a row for each.

Clients, the border, links and the performer carry calls and know no kind by its name; they ask
here. A call is made by each *rank* of *size*; counts are of elements of its dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Optional

import msgspec
import numpy as np

from ringd.collective import coalesced, codec, reduction
from ringd.collective.block_plans import all_to_all, gather, scatter
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.chain_plans import (
    chain_all_reduce,
    chain_broadcast,
    chain_reduce,
    chain_reduce_scatter,
    point_to_point,
)
from ringd.collective.plan import Plan, Task
from ringd.collective.reduction import Array, Reduction
from ringd.collective.ring_plans import ring_all_gather, ring_all_reduce, ring_reduce_scatter

MAX_BYTES = (1 << 63) - 1

PAIR = 2
"""Ranks of a channel."""

Shape = tuple[int, ...]
ShapeOf = Callable[[Call, int, int], Optional[Shape]]
"""Given a call, a rank and the size, returns the shape of what it has; None for nothing."""


# A Struct rather than a dataclass: made for every call, and several times as fast to make.
class Inputs(msgspec.Struct, frozen=True, gc=False):
    """What all ranks handed over for a small call."""

    arrays: Sequence[Array]
    """By rank, 1-d."""
    calls: Sequence[Call]
    """By rank."""
    rank: int
    """Whose result is wanted."""
    reduction: Reduction | None
    order: Sequence[int] = ()
    """All ranks, in the order in which sums are taken; empty for the ranks' own."""

    @property
    def root(self) -> int:
        """The rank that the call names."""
        return root_of(self.calls[self.rank])

    @property
    def arithmetic(self) -> Reduction:
        """What to compute, of a kind that reduces."""
        assert self.reduction is not None  # noqa: S101 - for the type checker
        return self.reduction

    @property
    def summands(self) -> Sequence[int]:
        """All ranks, in the order in which sums are taken."""
        return self.order or range(len(self.arrays))

    def block(self, sender: int) -> Array:
        """Return the part of the input of *sender* that is for the rank."""
        array, call, size = self.arrays[sender], self.calls[sender], len(self.arrays)
        if not call.counts:
            block = len(array) // size
            return array[self.rank * block : (self.rank + 1) * block]
        row = math.prod(call.shape[1:])
        start = sum(call.counts[: self.rank]) * row
        return array[start : start + call.counts[self.rank] * row]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the calls of one kind mean."""

    source: ShapeOf
    """What a rank hands over."""
    target: ShapeOf
    """What a rank is given."""
    compute: Callable[[Inputs, Array], None]
    """Computes a small call into one rank's target."""
    plan: Callable[[Task], Plan]
    """Returns what a machine does for a large call."""
    data: bool = True
    """Whether there is a tensor."""
    ends_together: bool = False
    """Whether a rank's part in a large call is through only when all data is on the last part of
    its way to the others. Of other kinds a rank may be through long before them, as a root that
    has only to send."""
    reduces: bool = False
    """Whether there is an op."""
    rooted: bool = False
    """Whether there is a root."""
    divides: bool = False
    """Whether a source is divided among the ranks along axis 0, evenly unless there are counts."""
    joins: bool = False
    """Whether a target is made of the parts of all ranks, joined along axis 0."""
    passes: bool = False
    """Whether a machine may hold any number of chunks for others in a large call, and so has to say
    how many it takes. Of other kinds the plan itself is the bound."""
    counts: int = 0
    """How many counts there may be for each rank."""
    narrows: bool = False
    """Whether its tensors may travel encoded."""
    coalesces: bool = False
    """Whether what is handed over is several tensors, which travel as one row."""
    pair: bool = False
    """Whether it is a call of two ranks, the second of which is given what the first hands over."""
    conflict: Callable[[Sequence[Call]], str] = lambda _calls: ""
    """Says why the calls of all ranks do not fit together, though all fields but the shape's rows
    and the counts are equal; empty if they do."""

    @property
    def rows(self) -> bool:
        """Whether a tensor has an axis 0, along which it is divided, or joined to others."""
        return self.divides or self.joins

    @property
    def undivided(self) -> bool:
        """Whether what a rank hands over stays whole; and the call is not one of two ranks."""
        return not (self.divides or self.pair)

    @property
    def sized(self) -> bool:
        """Whether what a call means depends on the rank that makes it, or on how many there are."""
        return self.rooted or self.rows or self.pair


def of(call: Call) -> Kind:
    """Return the kind of *call*.

    Raises:
        ValueError: there is no such kind.
    """
    try:
        return KINDS[call.kind]
    except KeyError:
        raise ValueError(f"unknown kind of call {call.kind!r}") from None


def root_of(call: Call) -> int:
    """Return the rank that has, or is given, what others have not; 0 if none is named."""
    return max(0, call.root)


def ends_together(call: Call, *, by_rank: bool) -> bool:
    """Return :attr:`Kind.ends_together`; a chain of the ranks does not, whatever its kind."""
    kind = of(call)
    return kind.ends_together and not (kind.reduces and by_rank)


def check(call: Call, size: int) -> None:
    """Make sure that *call* can be made by *size* ranks, and computed here.

    Raises:
        ValueError: there is no such kind or op, or the tensor can be none.
        TypeError: the dtype is unknown here, or has no such op.
    """
    _check(bare(call), size)


def bare(call: Call) -> Call:
    """Return *call* as short as one can be that is computed alike: what is kept is kept of that.

    It has no name, as programs repeat their calls under ever new ones; and of tensors that travel
    as one row it says no more than how many elements they have together.

    Raises:
        ValueError: what it says of the tensors cannot be.
    """
    if call.tensors:
        row = coalesced.written([(coalesced.elements(call.tensors),)])
        return msgspec.structs.replace(call, name="", tensors=row)
    return msgspec.structs.replace(call, name="") if call.name else call


@lru_cache(maxsize=1024)
def _check(call: Call, size: int) -> None:
    kind = of(call)
    if not kind.rooted and call.root != NO_ROOT:
        raise ValueError(f"{call.kind} has no root")
    if kind.pair and size != PAIR:
        raise ValueError(f"{call.kind} is a call of two ranks, not of {size}")
    if kind.rooted and not 0 <= call.root < size:
        raise ValueError(f"root {call.root} is not one of the {size} ranks")
    if not kind.data:
        if call.reduction or call.dtype or call.shape or call.wire or call.tensors:
            raise ValueError(f"a {call.kind} has no data")
        return
    dtype = reduction.dtype_from_name(call.dtype)
    if kind.reduces:
        reduction.check(call.reduction, dtype)
    elif call.reduction:
        raise ValueError(f"{call.kind} has no op")
    if call.wire:
        _check_wire(kind, call, dtype)
    _check_shape(kind, call, size)
    if target_count(call, root_of(call), size) * dtype.itemsize > MAX_BYTES:
        raise ValueError("the tensor is too large")


def _check_wire(kind: Kind, call: Call, dtype: np.dtype[Any]) -> None:
    if not kind.narrows:
        kinds = ", ".join(name for name, row in KINDS.items() if row.narrows)
        raise ValueError(f"{call.kind} has no wire; these kinds have: {kinds}")
    codec.check(call.wire, dtype, call.reduction)


def _check_shape(kind: Kind, call: Call, size: int) -> None:
    if any(side < 0 for side in call.shape):
        raise ValueError("a shape has up to 64 sides, none negative")
    _check_tensors(kind, call)
    if kind.rows and not call.shape:
        raise ValueError(f"a tensor of {call.kind} has at least one axis")
    if call.counts:
        _check_counts(kind, call, size)
    elif kind.divides and call.shape[0] % size:
        raise ValueError(
            f"axis 0 of shape {call.shape} cannot be divided among {size} ranks by {call.kind}"
        )


def _check_tensors(kind: Kind, call: Call) -> None:
    if not kind.coalesces:
        if call.tensors:
            raise ValueError(f"{call.kind} is of one tensor")
        return
    together = coalesced.elements(call.tensors)
    if call.shape != (together,):
        raise ValueError(
            f"the tensors of {call.kind} have {together} elements together, but the row of them "
            f"has shape {call.shape}"
        )


def _check_counts(kind: Kind, call: Call, size: int) -> None:
    if len(call.counts) != kind.counts * size:
        raise ValueError(
            f"{call.kind} of {size} ranks has {kind.counts * size} counts, not {len(call.counts)}"
        )
    if min(call.counts) < 0:
        raise ValueError("a count is not negative")
    if kind.divides and sum(call.counts[:size]) != call.shape[0]:
        raise ValueError(
            f"the counts to send, {call.counts[:size]}, add up to {sum(call.counts[:size])}, but "
            f"axis 0 has {call.shape[0]} rows"
        )


def disagreement(calls: Sequence[Call]) -> str | None:
    """Return why the *calls* of all ranks, in their order, do not fit together; None if they do.

    Empty where that shows in the calls themselves.

    Raises:
        ValueError: there is no such kind.
    """
    first = calls[0]
    if not first.counts and calls.count(first) == len(calls):
        return None
    kind = of(first)
    if kind.coalesces and all(_without_tensors(call) == _without_tensors(first) for call in calls):
        return coalesced.difference([call.tensors for call in calls])
    if not kind.counts or not first.counts:
        return ""
    if any(_alike(call) != _alike(first) for call in calls):
        return ""
    for rank, call in enumerate(calls):  # of other members, too, whose counts are as they say
        try:
            check(call, len(calls))
        except (TypeError, ValueError) as error:
            return f"rank {rank} cannot make this one: {error}"
    return kind.conflict(calls) or None


def _alike(call: Call) -> Call:
    """Return *call* without what may differ from rank to rank where there are counts."""
    return msgspec.structs.replace(call, shape=call.shape[1:], counts=(len(call.counts),))


def _without_tensors(call: Call) -> Call:
    """Return *call* as it is whatever the shapes of its tensors."""
    return msgspec.structs.replace(call, shape=(), tensors="")


def sent(calls: Sequence[Call], sender: int, receiver: int) -> int:
    """Return how many elements of what *sender* hands over are for *receiver*."""
    call, size = calls[sender], len(calls)
    if not of(call).divides:
        return source_count(call, sender, size)
    if call.counts:
        return call.counts[receiver] * math.prod(call.shape[1:])
    return math.prod(call.shape) // size


@lru_cache(maxsize=1024)
def source_count(call: Call, rank: int, size: int) -> int:
    """Return the number of elements that *rank* hands over; raises as :func:`of`."""
    shape = of(call).source(call, rank, size)
    return 0 if shape is None else math.prod(shape)


@lru_cache(maxsize=1024)
def target_count(call: Call, rank: int, size: int) -> int:
    """Return the number of elements that *rank* is given; raises as :func:`of`."""
    shape = of(call).target(call, rank, size)
    return 0 if shape is None else math.prod(shape)


def source_bytes(call: Call, rank: int, size: int) -> int | None:
    """Return the bytes that *rank* hands over; None for a dtype that is unknown here.

    Raises:
        ValueError: there is no such kind.
    """
    return _bytes(call, source_count(call, rank, size))


def nbytes(call: Call, rank: int, size: int) -> tuple[int | None, int | None]:
    """Return the bytes that *rank* hands over, and those that it is given.

    Args:
        call: one that :func:`check` has nothing to say of, but perhaps a dtype that is unknown
            here, for which the bytes are None.
        rank: of *size* ranks.
        size: their number.
    """
    source, target = source_count(call, rank, size), target_count(call, rank, size)
    return _bytes(call, source), _bytes(call, target)


def _bytes(call: Call, count: int) -> int | None:
    itemsize = reduction.itemsize_of(call.dtype) if count else 0
    return None if itemsize is None else count * itemsize


# --- shapes -----------------------------------------------------------------------------


def _none(_call: Call, _rank: int, _size: int) -> Shape | None:
    return None


def _whole(call: Call, _rank: int, _size: int) -> Shape | None:
    return call.shape


def _block(call: Call, _rank: int, size: int) -> Shape | None:
    return (call.shape[0] // size, *call.shape[1:])


def _of_all(call: Call, _rank: int, size: int) -> Shape | None:
    rows = sum(call.counts) if call.counts else call.shape[0] * size
    return (rows, *call.shape[1:])


def _from_each(call: Call, _rank: int, size: int) -> Shape | None:
    return (sum(call.counts[size:]), *call.shape[1:]) if call.counts else call.shape


# --- what must fit together -------------------------------------------------------------


def _counts_of_each(calls: Sequence[Call]) -> str:
    for rank, call in enumerate(calls):
        if call.counts != calls[0].counts:
            return f"rank {rank} has other counts than rank 0"
        if call.shape[0] != call.counts[rank]:
            return f"rank {rank} has {call.shape[0]} rows, not {call.counts[rank]}, as was counted"
    return ""


def _counts_of_pairs(calls: Sequence[Call]) -> str:
    size = len(calls)
    for sender, receiver in itertools.product(range(size), range(size)):
        sent, expected = calls[sender].counts[receiver], calls[receiver].counts[size + sender]
        if sent != expected:
            return (
                f"rank {sender} sends {sent} rows to rank {receiver}, which expects {expected} "
                "of it"
            )
    return ""


def _at_root(shape: ShapeOf) -> ShapeOf:
    """Return a shape that is nothing everywhere but at the root."""

    def at_root(call: Call, rank: int, size: int) -> Shape | None:
        return shape(call, rank, size) if rank == root_of(call) else None

    return at_root


def _elsewhere(shape: ShapeOf) -> ShapeOf:
    """Return a shape that is nothing at the root."""

    def elsewhere(call: Call, rank: int, size: int) -> Shape | None:
        return None if rank == root_of(call) else shape(call, rank, size)

    return elsewhere


# --- small calls ------------------------------------------------------------------------


def _barrier(_inputs: Inputs, _target: Array) -> None:
    """Everybody is there: that is all there is to it."""


def _reduce(inputs: Inputs, target: Array) -> None:
    if len(target):
        arrays, order, arithmetic = inputs.arrays, inputs.order, inputs.reduction
        assert arithmetic is not None  # noqa: S101 - of a kind that reduces
        arithmetic.reduce_all([arrays[rank] for rank in order] if order else arrays, target)


def _reduce_scatter(inputs: Inputs, target: Array) -> None:
    inputs.arithmetic.reduce_all([inputs.block(rank) for rank in inputs.summands], target)


def _broadcast(inputs: Inputs, target: Array) -> None:
    target[:] = inputs.arrays[inputs.root]


def _send(inputs: Inputs, target: Array) -> None:
    if inputs.rank != inputs.root:
        target[:] = inputs.arrays[inputs.root]


def _gather(inputs: Inputs, target: Array) -> None:
    if len(target):
        np.concatenate(inputs.arrays, out=target)


def _scatter(inputs: Inputs, target: Array) -> None:
    target[:] = inputs.block(inputs.root)


def _all_to_all(inputs: Inputs, target: Array) -> None:
    ranks = range(len(inputs.arrays))
    np.concatenate([inputs.block(rank) for rank in ranks], out=target)


# --- large calls ------------------------------------------------------------------------


def _all_reduce_plan(task: Task) -> Plan:
    return chain_all_reduce(task) if task.by_rank else ring_all_reduce(task)


def _reduce_scatter_plan(task: Task) -> Plan:
    return chain_reduce_scatter(task) if task.by_rank else ring_reduce_scatter(task)


def _no_plan(_task: Task) -> Plan:
    raise AssertionError("a call without data is never large")


_ALL_GATHER = Kind(
    _whole, _of_all, _gather, ring_all_gather, joins=True, counts=1, conflict=_counts_of_each
)

_ALL_REDUCE = Kind(
    _whole,
    _whole,
    _reduce,
    _all_reduce_plan,
    ends_together=True,
    reduces=True,
    narrows=True,
)

KINDS: dict[str, Kind] = {
    "all_reduce": _ALL_REDUCE,
    "all_reduce_coalesced": replace(_ALL_REDUCE, coalesces=True),
    "reduce": Kind(
        _whole,
        _at_root(_whole),
        _reduce,
        chain_reduce,
        reduces=True,
        rooted=True,
        passes=True,
        narrows=True,
    ),
    "reduce_scatter": Kind(
        _whole,
        _block,
        _reduce_scatter,
        _reduce_scatter_plan,
        reduces=True,
        divides=True,
        passes=True,
        narrows=True,
    ),
    "broadcast": Kind(
        _at_root(_whole), _whole, _broadcast, chain_broadcast, rooted=True, narrows=True
    ),
    "all_gather": replace(_ALL_GATHER, narrows=True),
    "all_gather_bytes": _ALL_GATHER,  # first of the lengths, then of the bytes
    "gather": Kind(
        _whole, _at_root(_of_all), _gather, gather, rooted=True, joins=True, passes=True
    ),
    "scatter": Kind(
        _at_root(_whole), _block, _scatter, scatter, rooted=True, divides=True, passes=True
    ),
    "all_to_all": Kind(
        _whole,
        _from_each,
        _all_to_all,
        all_to_all,
        divides=True,
        joins=True,
        passes=True,
        counts=2,
        conflict=_counts_of_pairs,
    ),
    "message": Kind(_at_root(_whole), _elsewhere(_whole), _send, point_to_point, pair=True),
    "barrier": Kind(_none, _none, _barrier, _no_plan, data=False),
}
