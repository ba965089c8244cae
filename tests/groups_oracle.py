"""What a call gives each rank, said in numpy's words and without the code that is tested."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ringd.collective.call import Call
from ringd.collective.reduction import dtype_from_name

_UFUNCS = {
    "sum": np.add,
    "mean": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "bxor": np.bitwise_xor,
}
_ALIKE = ("all_reduce", "all_reduce_coalesced", "broadcast", "all_gather", "all_gather_bytes")
"""Kinds of which all ranks are given the same."""
ALL_REDUCES = ("all_reduce", "all_reduce_coalesced")
"""Kinds that take the ways of an all-reduce."""


def alike(call: Call) -> bool:
    """Whether all ranks are given the same bits."""
    return call.kind in _ALIKE


def fit(calls: Sequence[Call]) -> bool:
    """Whether these calls of all ranks are one."""
    if not calls[0].counts or calls[0].kind == "all_gather_bytes":
        return len({(*_fields(call), call.counts) for call in calls}) == 1
    size = len(calls)
    return len({_fields(call) for call in calls}) == 1 and all(
        sender.counts[to] == receiver.counts[size + source]
        for source, sender in enumerate(calls)
        for to, receiver in enumerate(calls)
    )


def _fields(call: Call) -> tuple[object, ...]:
    shape = call.shape[1:] if call.counts else call.shape
    words = call.kind, call.reduction, call.dtype, call.name, call.wire
    return *words, shape, call.root, call.tensors


def right(calls: Sequence[Call], given: Sequence[bytes], rank: int, value: bytes) -> bool:
    """Whether *value* is what *rank* is to be given, up to the order of a float sum."""
    call = calls[rank]
    if call.kind == "barrier":
        return value == b""
    dtype = dtype_from_name(call.dtype)
    inputs = [np.frombuffer(data, dtype) for data in given]
    wanted = _wanted(calls, inputs, rank)
    if wanted is None:
        return value == b""
    if not (call.reduction or call.wire) or dtype.kind in "biu":
        return value == wanted.tobytes()
    rough = call.wire or dtype.itemsize == 2
    got = np.frombuffer(value, dtype)
    return got.shape == wanted.shape and np.allclose(
        got.astype(complex), wanted.astype(complex), rtol=0.1 if rough else 1e-5
    )


def _wanted(calls: Sequence[Call], inputs: Sequence[np.ndarray], rank: int) -> np.ndarray | None:
    call, size = calls[rank], len(calls)
    root, kind = max(0, call.root), call.kind
    if kind in ("reduce", "gather") and rank != root:
        return None
    if kind == "message":
        return inputs[0] if rank else None
    if call.reduction:
        reduced = _UFUNCS[call.reduction].reduce(np.stack(inputs))
        if call.reduction == "mean":
            reduced = (reduced / size).astype(reduced.dtype)
        return np.split(reduced, size)[rank] if kind == "reduce_scatter" else reduced
    if kind == "broadcast":
        return inputs[root]
    if kind == "scatter":
        return np.split(inputs[root], size)[rank]
    if kind == "all_to_all":
        return np.concatenate([_part(calls[s], inputs[s], rank, size) for s in range(size)])
    return np.concatenate(inputs)


def _part(call: Call, values: np.ndarray, receiver: int, size: int) -> np.ndarray:
    """Return what a sender of an all_to_all has for *receiver*."""
    if not call.counts:
        return np.split(values, size)[receiver]
    ends = np.cumsum(call.counts[:size]) * math.prod(call.shape[1:])
    return np.split(values, ends[:-1])[receiver]
