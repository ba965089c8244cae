"""MLX with its ring backend, in the program, on the processor."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from instrument.batch import Batch
from instrument.patterns import Array

from peers.slots import Slot


class Mlx:
    """One rank; *hostfile* names a file with the addresses of all, if not the environment does."""

    def __init__(self, rank: int, size: int, hostfile: str | None) -> None:
        if hostfile is not None:
            os.environ |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": hostfile}
        import mlx.core as mx  # noqa: PLC0415  no dependency of ringd

        mx.set_default_device(mx.cpu)
        self._mx: Any = mx
        self._world: Any = mx.distributed.init(strict=True, backend="ring")
        if (self._world.rank(), self._world.size()) != (rank, size):
            raise RuntimeError(f"this is rank {self._world.rank()} of {self._world.size()}")

    def slot(self, batch: Batch, count: int) -> Slot:
        """See :class:`peers.slots.System`."""
        if batch.kind != "all_reduce":
            raise NotImplementedError(f"{batch.kind} is not compared with MLX")
        mx, world = self._mx, self._world
        tensor = mx.zeros(count, dtype=mx.float32)
        mx.eval(tensor)

        def call() -> Array:
            total = mx.distributed.all_sum(tensor, group=world)
            mx.eval(total)
            return np.array(total, copy=False)

        return Slot(np.array(tensor, copy=False), call)

    def close(self) -> None:
        """See :class:`peers.slots.System`; MLX leaves at the process's end."""
