"""The table of kinds: what each kind of call takes, gives and computes, a row for each.

Clients, the border, links and the performer carry calls and know no kind by its name; they ask
here. A call is made by each *rank* of *size*; counts are of elements of its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ringd.collective import reduction
from ringd.collective.block_plans import all_to_all, gather, scatter
from ringd.collective.call import NO_ROOT, Call
from ringd.collective.chain_plans import (
    chain_all_reduce,
    chain_broadcast,
    chain_reduce,
    chain_reduce_scatter,
)
from ringd.collective.plan import Plan, Task
from ringd.collective.reduction import Array, Reduction
from ringd.collective.ring_plans import ring_all_gather, ring_all_reduce, ring_reduce_scatter

MAX_BYTES = (1 << 63) - 1

Shape = tuple[int, ...]
ShapeOf = Callable[[Call, int, int], Optional[Shape]]
"""Given a call, a rank and the size, returns the shape of what it has; None for nothing."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all ranks handed over for a small call."""

    arrays: Sequence[Array]
    """By rank, 1-d."""
    rank: int
    """Whose result is wanted."""
    root: int
    reduction: Reduction | None

    @property
    def arithmetic(self) -> Reduction:
        """What to compute, of a kind that reduces."""
        assert self.reduction is not None  # noqa: S101 - for the type checker
        return self.reduction

    def block(self, array: Array) -> Array:
        """Return the part of *array* that is for the rank."""
        block = len(array) // len(self.arrays)
        return array[self.rank * block : (self.rank + 1) * block]


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
    """Returns what a rank does for a large call."""
    data: bool = True
    """Whether there is a tensor."""
    reduces: bool = False
    """Whether there is an op."""
    rooted: bool = False
    """Whether there is a root."""
    rows: bool = False
    """Whether a tensor has an axis 0, along which it is divided, or joined to others."""
    divides: bool = False
    """Whether that is divided evenly among the ranks."""


def of(call: Call) -> Kind:
    """Return the kind of *call*.

    Raises:
        ValueError: there is no such kind.
    """
    kind = KINDS.get(call.kind)
    if kind is None:
        raise ValueError(f"unknown kind of call {call.kind!r}")
    return kind


def check(call: Call, size: int) -> None:
    """Make sure that *call* can be made by *size* ranks, and computed here.

    Raises:
        ValueError: there is no such kind or op, or the tensor can be none.
        TypeError: the dtype is unknown here, or has no such op.
    """
    kind = of(call)
    if not (0 <= call.root < size if kind.rooted else call.root == NO_ROOT):
        raise ValueError(f"root {call.root} is not one of the {size} ranks of {call.kind}")
    if not kind.data:
        if call.reduction or call.dtype or call.shape:
            raise ValueError(f"a {call.kind} has no data")
        return
    dtype = reduction.dtype_from_name(call.dtype)
    if kind.reduces:
        reduction.check(call.reduction, dtype)
    elif call.reduction:
        raise ValueError(f"{call.kind} has no op")
    if any(side < 0 for side in call.shape):
        raise ValueError("a shape has up to 64 sides, none negative")
    if math.prod(call.shape) * dtype.itemsize * size > MAX_BYTES:
        raise ValueError("the tensor is too large")
    if kind.rows and not call.shape:
        raise ValueError(f"a tensor of {call.kind} has at least one axis")
    if kind.divides and call.shape[0] % size:
        raise ValueError(
            f"axis 0 of shape {call.shape} cannot be divided among {size} ranks by {call.kind}"
        )


def source_count(call: Call, rank: int, size: int) -> int:
    """Return the number of elements that *rank* hands over; raises as :func:`of`."""
    shape = of(call).source(call, rank, size)
    return 0 if shape is None else math.prod(shape)


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


def target_bytes(call: Call, rank: int, size: int) -> int | None:
    """Return the bytes that *rank* is given; as :func:`source_bytes`."""
    return _bytes(call, target_count(call, rank, size))


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
    return (call.shape[0] * size, *call.shape[1:])


def _at_root(shape: ShapeOf) -> ShapeOf:
    """Return a shape that is nothing everywhere but at the root."""

    def at_root(call: Call, rank: int, size: int) -> Shape | None:
        return shape(call, rank, size) if rank == call.root else None

    return at_root


# --- small calls ------------------------------------------------------------------------


def _barrier(_inputs: Inputs, _target: Array) -> None:
    """Everybody is there: that is all there is to it."""


def _reduce(inputs: Inputs, target: Array) -> None:
    if len(target):
        inputs.arithmetic.reduce_all(inputs.arrays, target)


def _reduce_scatter(inputs: Inputs, target: Array) -> None:
    inputs.arithmetic.reduce_all([inputs.block(array) for array in inputs.arrays], target)


def _broadcast(inputs: Inputs, target: Array) -> None:
    target[:] = inputs.arrays[inputs.root]


def _gather(inputs: Inputs, target: Array) -> None:
    if len(target):
        np.concatenate(inputs.arrays, out=target)


def _scatter(inputs: Inputs, target: Array) -> None:
    target[:] = inputs.block(inputs.arrays[inputs.root])


def _all_to_all(inputs: Inputs, target: Array) -> None:
    np.concatenate([inputs.block(array) for array in inputs.arrays], out=target)


# --- large calls ------------------------------------------------------------------------


def _all_reduce_plan(task: Task) -> Plan:
    return chain_all_reduce(task) if task.by_rank else ring_all_reduce(task)


def _reduce_scatter_plan(task: Task) -> Plan:
    return chain_reduce_scatter(task) if task.by_rank else ring_reduce_scatter(task)


def _no_plan(_task: Task) -> Plan:
    raise AssertionError("a call without data is never large")


KINDS: dict[str, Kind] = {
    "all_reduce": Kind(_whole, _whole, _reduce, _all_reduce_plan, reduces=True),
    "reduce": Kind(_whole, _at_root(_whole), _reduce, chain_reduce, reduces=True, rooted=True),
    "reduce_scatter": Kind(
        _whole, _block, _reduce_scatter, _reduce_scatter_plan, reduces=True, rows=True, divides=True
    ),
    "broadcast": Kind(_at_root(_whole), _whole, _broadcast, chain_broadcast, rooted=True),
    "all_gather": Kind(_whole, _of_all, _gather, ring_all_gather, rows=True),
    "gather": Kind(_whole, _at_root(_of_all), _gather, gather, rooted=True, rows=True),
    "scatter": Kind(
        _at_root(_whole), _block, _scatter, scatter, rooted=True, rows=True, divides=True
    ),
    "all_to_all": Kind(_whole, _whole, _all_to_all, all_to_all, rows=True, divides=True),
    "barrier": Kind(_none, _none, _barrier, _no_plan, data=False),
}
