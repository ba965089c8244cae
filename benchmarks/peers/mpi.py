"""Open MPI through mpi4py, in the program, which ``mpirun`` has started."""

from __future__ import annotations

from typing import Any

import numpy as np
from instrument.batch import Batch
from instrument.patterns import Array

from peers.slots import Slot


class Mpi:
    """One rank."""

    def __init__(self, rank: int, size: int, argument: None) -> None:  # noqa: ARG002
        from mpi4py import MPI  # noqa: PLC0415  no dependency of ringd

        self._world: Any = MPI.COMM_WORLD
        if (self._world.rank, self._world.size) != (rank, size):
            raise RuntimeError(f"this process is rank {self._world.rank} of {self._world.size}")

    def slot(self, batch: Batch, count: int) -> Slot:
        """See :class:`peers.slots.System`."""
        if batch.kind != "all_reduce":
            raise NotImplementedError(f"{batch.kind} is not compared with Open MPI")
        array, result = np.empty(count, np.float32), np.empty(count, np.float32)
        world = self._world

        def call() -> Array:
            world.Allreduce(array, result)
            return result

        # Open MPI sends what others lack only while its rank is within a call: where one goes on to
        # something else behind its own result, others wait for the rest (64 MiB, four ranks).
        return Slot(array, call, settle=world.Barrier)

    def close(self) -> None:
        """See :class:`peers.slots.System`; mpi4py leaves at the process's end."""
