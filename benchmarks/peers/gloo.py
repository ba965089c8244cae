"""torch.distributed with its Gloo backend, in the program; in place where it works so."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from instrument.batch import Batch
from instrument.patterns import Array

from peers.slots import Slot, ping_pong


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks find each other."""

    file: str
    interface: str


class Gloo:
    """One rank, with one thread of torch."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        # Before torch is imported. Gloo would otherwise listen where the host's name points.
        os.environ["GLOO_SOCKET_IFNAME"] = meeting.interface
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch  # noqa: PLC0415  no dependency of ringd, and slow to import
        import torch.distributed as dist  # noqa: PLC0415

        torch.set_num_threads(1)
        self._rank = rank
        self._size = size
        self._torch: Any = torch
        self._dist: Any = dist
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting.file}", rank=rank, world_size=size
        )

    def slot(self, batch: Batch, count: int) -> Slot:
        """See :class:`peers.slots.System`."""
        dist, torch = self._dist, self._torch
        tensor = torch.empty(count, dtype=torch.float32)
        if batch.kind == "ping_pong":
            received, other = torch.empty(count, dtype=torch.float32), 1 - self._rank
            send = functools.partial(dist.send, tensor, other)
            receive = functools.partial(dist.recv, received, other)
            return ping_pong(self._rank, tensor.numpy(), received.numpy(), send, receive)
        given = {"all_gather": count * self._size, "reduce_scatter": count // self._size}
        result = tensor
        if batch.kind not in {"all_reduce", "broadcast"}:
            result = torch.empty(given.get(batch.kind, count), dtype=torch.float32)
        call = {
            "all_reduce": lambda **how: dist.all_reduce(tensor, **how),
            "broadcast": lambda **how: dist.broadcast(tensor, 0, **how),
            "all_gather": lambda **how: dist.all_gather_single(result, tensor, **how),
            "reduce_scatter": lambda **how: dist.reduce_scatter_single(result, tensor, **how),
            "all_to_all": lambda **how: dist.all_to_all_single(result, tensor, **how),
        }[batch.kind]
        array: Array = result.numpy()

        def blocking() -> Array:
            call()
            return array

        def submit() -> Callable[[], Array]:
            work = call(async_op=True)

            def wait() -> Array:
                work.wait()
                return array

            return wait

        return Slot(tensor.numpy(), blocking, submit, self._together)

    def _together(self, inputs: Sequence[Array]) -> Callable[[], Sequence[Array]]:
        tensors = [self._torch.from_numpy(array) for array in inputs]

        def call() -> Sequence[Array]:
            with warnings.catch_warnings():  # it is said to be on its way out
                warnings.simplefilter("ignore", FutureWarning)
                self._dist.all_reduce_coalesced(tensors)
            return inputs

        return call

    def close(self) -> None:
        """See :class:`peers.slots.System`."""
        self._dist.destroy_process_group()
