"""What follows from the arguments of a call alone: found and checked once, then kept.

Programs repeat their calls, with other numbers and perhaps under other names.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from ringd.client.arguments import plain
from ringd.client.tensors import size_of
from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.reduction import dtype_from_name, dtype_name

_KEPT = 256
_NO_DATA = np.dtype(np.uint8)

SIZED = frozenset(name for name, kind in kinds.KINDS.items() if kind.sized)
"""The kinds whose calls mean something else to each rank, or for another number of them."""


class Form(msgspec.Struct, frozen=True):
    """A call as one of its ranks makes it."""

    call: Call
    gives: bool
    """Whether the rank hands over a tensor."""
    shape: tuple[int, ...] | None
    """Of its result; None where it is given none."""
    dtype: np.dtype[Any]
    """Of the result, native."""
    length: int | None
    """Bytes of the result; None where there is none."""


@lru_cache(maxsize=_KEPT)
def call_of(kind: str, op: str, dtype: np.dtype[Any], shape: tuple[int, ...], wire: str) -> Call:
    """Return the call of a tensor of that shape and dtype, without name and root.

    Raises:
        TypeError: the dtype is none that can be handed over.
        ValueError: *op* or *wire* is no text that can be sent.
    """
    op, wire = plain(op, "op"), plain(wire, "wire")
    if not kinds.KINDS[kind].data:
        return Call(kind, op, "", (), "", wire=wire)
    return Call(kind, op, dtype_name(dtype), shape, "", wire=wire)


@lru_cache(maxsize=_KEPT)
def form_of(call: Call, rank: int, size: int) -> Form:
    """Return what *call*, which has no name, means to *rank* of *size*.

    Raises:
        TypeError, ValueError: as :func:`ringd.collective.kinds.check`.
    """
    kinds.check(call, size)
    row = kinds.of(call)
    shape = row.target(call, rank, size)
    dtype = dtype_from_name(call.dtype) if row.data else _NO_DATA
    length = None if shape is None else size_of(shape, dtype)
    return Form(call, row.source(call, rank, size) is not None, shape, dtype, length)
