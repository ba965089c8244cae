"""Collectives on tensors: each is checked, and its memory found, before it is begun.

A tensor travels as one row of its elements, in their logical order: what must be equal on all ranks
is their number and dtype, not the shape, as with torch's other backends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ringd.client.ring import Ring
from ringd.client.work import Work
from ringd.torch.operations import Reduction
from ringd.torch.tensors import Array, Target, array_of, as_one, local, numbers, target_of


@dataclass(frozen=True, slots=True)
class Team:
    """A ring, and its ranks, which are known before all are there."""

    ring: Ring
    rank: int
    size: int


Land = Callable[[Any], None]


def _take_nothing(_result: object) -> None:
    """Take no result."""


_nothing: Land = _take_nothing


class Call(NamedTuple):
    """A call that can be made."""

    begin: Callable[[float], Work[Any]]
    """Begins it, with a deadline in so many seconds."""
    land: Land
    """Takes its result, once that is there."""


def all_reduce(team: Team, tensor: torch.Tensor, reduction: Reduction) -> Call:
    """Reduce *tensor* over all ranks, in place."""
    op = reduction.name
    target = target_of(numbers(local(tensor), op), filled=True)
    out, land = _landing([target])
    if reduction.factor is not None:
        x = array_of(reduction.prepared(target.tensor)).reshape(-1)
    else:
        x = target.array.reshape(-1) if out is None else out
    return Call(lambda seconds: team.ring.all_reduce_async(x, op, out=out, timeout=seconds), land)


def all_reduce_coalesced(team: Team, tensors: Sequence[torch.Tensor], reduction: Reduction) -> Call:
    """Reduce each of *tensors* over all ranks, in place, in one call for each dtype."""
    op = reduction.name
    targets = [target_of(numbers(local(tensor), op), filled=True) for tensor in tensors]
    if reduction.factor is None:
        xs = [target.array.reshape(-1) for target in targets]
    else:
        xs = [array_of(reduction.prepared(target.tensor)).reshape(-1) for target in targets]

    def land(results: list[Array]) -> None:
        for target, result in zip(targets, results, strict=True):
            _write([target], result)

    return Call(lambda seconds: team.ring.all_reduce_coalesced_async(xs, op, timeout=seconds), land)


def reduce(team: Team, tensor: torch.Tensor, root: int, reduction: Reduction) -> Call:
    """Reduce *tensor* over all ranks, in place on the rank *root*; elsewhere it stays as it is."""
    op = reduction.name
    tensor = numbers(local(tensor), op)
    x = array_of(reduction.prepared(tensor)).reshape(-1)
    out, land = _landing([target_of(tensor)]) if team.rank == root else (None, _nothing)
    return Call(lambda seconds: team.ring.reduce_async(x, root, op, out=out, timeout=seconds), land)


def broadcast(team: Team, tensor: torch.Tensor, root: int) -> Call:
    """Give *tensor* the values that it has on the rank *root*."""
    tensor = local(tensor)
    out, land = None, _nothing
    if team.rank == root:
        x = array_of(tensor).reshape(-1)
    else:
        target = target_of(tensor)
        x, (out, land) = _like(target.array, tensor.numel()), _landing([target])
    return Call(lambda seconds: team.ring.broadcast_async(x, root, out=out, timeout=seconds), land)


def all_gather(team: Team, outputs: Sequence[torch.Tensor], tensor: torch.Tensor) -> Call:
    """Write the *tensor* of all ranks, in their order, to *outputs*, or to the only one of them.

    Where there are several, and they differ in length, so may the ranks' tensors.
    """
    tensor = local(tensor)
    if len(outputs) == team.size and len({output.numel() for output in outputs}) > 1:
        return _all_gather_uneven(team, outputs, tensor)
    x = array_of(tensor).reshape(-1)
    _check_shares(outputs, x.size * team.size)
    out, land = _landing(_targets(outputs, tensor.dtype))
    return Call(lambda seconds: team.ring.all_gather_async(x, out=out, timeout=seconds), land)


def _all_gather_uneven(team: Team, outputs: Sequence[torch.Tensor], tensor: torch.Tensor) -> Call:
    targets = _targets(outputs, tensor.dtype)
    lengths = [target.array.nbytes for target in targets]
    data = array_of(tensor).tobytes()
    if len(data) != lengths[team.rank]:
        raise ValueError(f"this rank's output has {lengths[team.rank]} bytes, not {len(data)}")

    def land(everyone: list[bytes]) -> None:
        if lengths != [len(received) for received in everyone]:
            raise ValueError(f"{[len(r) for r in everyone]} bytes came, not {lengths}")
        for target, received in zip(targets, everyone, strict=True):
            _write([target], np.frombuffer(received, target.array.dtype))

    return Call(lambda seconds: team.ring.all_gather_bytes_async(data, timeout=seconds), land)


def gather(team: Team, outputs: Sequence[torch.Tensor], tensor: torch.Tensor, root: int) -> Call:
    """Write the *tensor* of all ranks, in their order, to *outputs* on the rank *root*."""
    tensor = local(tensor)
    x, out, land = array_of(tensor).reshape(-1), None, _nothing
    if team.rank == root:
        _check_shares(outputs, x.size * team.size)
        out, land = _landing(_targets(outputs, tensor.dtype))
    return Call(lambda seconds: team.ring.gather_async(x, root, out=out, timeout=seconds), land)


def scatter(team: Team, output: torch.Tensor, inputs: Sequence[torch.Tensor], root: int) -> Call:
    """Give *output* the input of that number which the rank *root* has."""
    target = target_of(local(output))
    count = output.numel() * team.size
    x = _like(target.array, count)
    if team.rank == root:
        _check_shares(inputs, count)
        x = _joined(team.ring, [local(given) for given in inputs], output.dtype)
    out, land = _landing([target])
    return Call(lambda seconds: team.ring.scatter_async(x, root, out=out, timeout=seconds), land)


def reduce_scatter(
    team: Team, output: torch.Tensor, inputs: Sequence[torch.Tensor], reduction: Reduction
) -> Call:
    """Reduce *inputs* over all ranks, each for one of them, and give *output* this rank's."""
    op = reduction.name
    output = numbers(local(output), op)
    ready = [reduction.prepared(numbers(local(tensor), op)) for tensor in inputs]
    _check_shares(ready, output.numel() * team.size)
    x = _joined(team.ring, ready, output.dtype)
    out, land = _landing([target_of(output)])
    return Call(
        lambda seconds: team.ring.reduce_scatter_async(x, op, out=out, timeout=seconds), land
    )


def all_to_all(
    team: Team,
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    received: Sequence[int] | None = None,
    sent: Sequence[int] | None = None,
) -> Call:
    """Send each rank its part of *inputs*, and write the parts that come from each to *outputs*.

    Args:
        team: the ranks.
        outputs: as all of them in one row.
        inputs: likewise.
        received: how many elements come from each rank; None for as many from each.
        sent: how many go to each; given where *received* is.
    """
    dtype = inputs[0].dtype
    count = sum(tensor.numel() for tensor in inputs)
    coming, room = count if received is None else sum(received), [o.numel() for o in outputs]
    if coming != sum(room):
        raise ValueError(f"{coming} elements come, and the outputs have room for {room}")
    x = _joined(team.ring, [local(given) for given in inputs], dtype)
    out, land = _landing(_targets(outputs, dtype))
    return Call(
        lambda seconds: team.ring.all_to_all_async(x, sent, received, out=out, timeout=seconds),
        land,
    )


def send(team: Team, tensor: torch.Tensor, to: int, tag: int) -> Call:
    """Send *tensor* to the rank *to*."""
    x = array_of(local(tensor)).reshape(-1)
    return Call(lambda seconds: team.ring.send_async(x, to, tag, timeout=seconds), _nothing)


def recv(team: Team, tensor: torch.Tensor, source: int, tag: int) -> Call:
    """Receive *tensor* from the rank *source*; of ``ANY``, this waits until one has sent some."""
    target = target_of(local(tensor))
    out, land = _landing([target])
    into, dtype = (tensor.numel(), target.array.dtype) if out is None else (out, None)
    return Call(
        lambda seconds: team.ring.recv_async(into, source, tag, dtype, timeout=seconds), land
    )


def barrier(team: Team) -> Call:
    """Wait for all ranks."""
    return Call(team.ring.barrier_async, _nothing)


def _like(array: Array, count: int) -> Array:
    """Return what says the dtype of *array*, and *count*, and has no memory of that length."""
    return np.broadcast_to(np.empty(1, array.dtype), (count,))


def _check_shares(tensors: Sequence[torch.Tensor], count: int) -> None:
    """Make sure that *tensors* have equal shares of *count* elements.

    Raises:
        ValueError: they have not.
    """
    room = [tensor.numel() for tensor in tensors]
    if not room or sum(room) != count or min(room) != max(room):
        raise ValueError(f"tensors of {room} elements are no equal shares of {count}")


def _targets(outputs: Sequence[torch.Tensor], dtype: torch.dtype) -> list[Target]:
    """Return the targets of *outputs*.

    Raises:
        TypeError: they are not of *dtype*.
    """
    for output in outputs:
        if output.dtype != dtype:
            raise TypeError(f"an output is of {output.dtype}, and the input of {dtype}")
    return [target_of(local(output)) for output in outputs]


def _joined(ring: Ring, inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> Array:
    """Return :func:`local` *inputs* as one row.

    Raises:
        TypeError: they are not of *dtype*.
    """
    for tensor in inputs:
        if tensor.dtype != dtype:
            raise TypeError(f"an input is of {tensor.dtype}, and another tensor of {dtype}")
    arrays = [array_of(tensor) for tensor in inputs]
    row = as_one(arrays)
    if row is None:  # in shared memory, so that it is copied once
        row = ring.empty(sum(array.size for array in arrays), arrays[0].dtype)
        _write_parts(row, arrays)
    return row


def _write_parts(row: Array, arrays: Sequence[Array]) -> None:
    start = 0
    for array in arrays:
        end = start + array.size
        np.copyto(row[start:end].reshape(array.shape), array)
        start = end


def _landing(targets: Sequence[Target]) -> tuple[Array | None, Land]:
    """Return the array that takes the result for *targets*, and what is to be done with that.

    The array is None where the result is one of its own, from which each target is given a part.
    """
    out = as_one([target.array for target in targets])
    if out is None:
        return None, lambda result: _write(targets, result)
    staged = [target for target in targets if target.staged is not None]
    if not staged:
        return out, _nothing
    return out, lambda _result: _finish(staged)


def _write(targets: Sequence[Target], row: Array) -> None:
    start = 0
    for target in targets:
        end = start + target.array.size
        np.copyto(target.array, row[start:end].reshape(target.array.shape))
        start = end
    _finish(targets)


def _finish(targets: Sequence[Target]) -> None:
    for target in targets:
        target.finish()
