"""Sums of sparse tensors: all ranks' elements are gathered, and those of one index added."""

from __future__ import annotations

import numpy as np
import torch

from ringd.torch.calls import Call, Team
from ringd.torch.operations import Reduction
from ringd.torch.tensors import array_of, local, target_of


def all_reduce_sparse(team: Team, tensor: torch.Tensor, reduction: Reduction) -> Call:
    """Add *tensor*, in coordinate form, over all ranks, in place.

    Raises:
        TypeError: *reduction* is another one.
    """
    if reduction != Reduction("sum"):
        raise TypeError(f"sparse tensors can only be added, not reduced by {reduction.name}")
    whole = tensor.detach().coalesce()
    indices, values = whole.indices(), whole.values()
    count = np.array([values.shape[0]], np.int64).tobytes()
    data = b"".join([count, array_of(indices).tobytes(), array_of(local(values)).tobytes()])
    name = f"sparse {values.dtype} {tuple(tensor.shape)}, {indices.shape[0]} of them sparse"

    def land(everyone: list[bytes]) -> None:
        parts = [_unpacked(received, indices, values) for received in everyone]
        total = torch.sparse_coo_tensor(
            torch.cat([found for found, _ in parts], 1),
            torch.cat([found for _, found in parts]),
            tensor.shape,
            check_invariants=True,
        )
        with torch.no_grad():
            tensor.copy_(total.coalesce())

    return Call(
        lambda seconds: team.ring.all_gather_bytes_async(data, name=name, timeout=seconds), land
    )


def _unpacked(
    data: bytes, indices: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank's indices and values, which have the dtypes of *indices* and *values*."""
    count, rows = int(np.frombuffer(data, np.int64, 1)[0]), indices.shape[0]
    there = torch.empty((rows, count), dtype=torch.int64)
    found = torch.empty((count, *values.shape[1:]), dtype=values.dtype)
    start = 8
    for piece in (there, found):
        array = target_of(piece).array
        end = start + array.nbytes
        array[...] = np.frombuffer(data[start:end], array.dtype).reshape(array.shape)
        start = end
    return there, found
