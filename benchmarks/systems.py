"""What is measured: each system's calls behind one face, as its users would make them.

A system makes *slots*. A slot is a tensor in the kind of memory that its mode of use is about,
and the calls that take it; whatever can be done before is done when the slot is made.

Of ringd this imports only what every build of it has, as a former one can be measured too.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import ringd

Floats = npt.NDArray[np.float32]
FLOAT32 = np.dtype(np.float32)
PATIENCE = 120.0
"""Seconds after which a call, or a ring that does not form, is given up."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor: fill ``input``, then make the call once, in either way."""

    input: Floats
    reduce: Callable[[], Floats]
    """Makes the call and returns the result, which may be ``input`` itself. A ``ping_pong`` is a
    message to the other rank and one from it, which is the result; rank 0 sends first."""
    submit: Callable[[], Callable[[], Floats]] | None = None
    """Starts that; calling what it returns waits for the result."""


class System(Protocol):
    """One member's end of a system."""

    def slot(self, mode: str, count: int, kind: str) -> Slot:
        """Return a new slot for calls of *kind* with *count* elements to hand over."""

    def close(self) -> None:
        """Leave."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is that uses ringd."""

    socket: str
    """Of its daemon."""
    local_rank: int = 0
    local_size: int = 1


class Ringd:
    """Through the client library and the daemon of this rank's machine.

    Modes that end in ``-empty`` take arrays made by ``ring.empty``, the others ordinary ones; those
    that name a wire have the calls travel so.
    """

    def __init__(self, rank: int, size: int, place: Place) -> None:
        several = {}
        if place.local_size > 1:
            several = {"local_rank": place.local_rank, "local_size": place.local_size}
        self._ring = ringd.connect(place.socket, timeout=PATIENCE, **several)
        self._ring.wait_ready(PATIENCE)
        if (self._ring.rank, self._ring.size) != (rank, size):
            raise RuntimeError(f"the daemon is rank {self._ring.rank} of {self._ring.size}")

    def slot(self, mode: str, count: int, kind: str) -> Slot:
        """See :class:`System`."""
        ring = self._ring
        empty = mode.endswith("-empty")
        array = ring.empty(count, FLOAT32) if empty else np.empty(count, FLOAT32)
        if kind == "ping_pong":
            result = np.empty(count, FLOAT32)
            other = 1 - ring.rank
            send = functools.partial(ring.send, array, other, timeout=PATIENCE)
            receive = functools.partial(ring.recv, result, other, timeout=PATIENCE)
            return ping_pong(ring.rank, array, result, send, receive)
        begin = getattr(ring, f"{kind}_async")
        how: dict[str, Any] = {"timeout": PATIENCE}
        if wires := {"bfloat16", "int8"}.intersection(mode.split("-")):
            how["wire"] = wires.pop()
        return Slot(
            array,
            functools.partial(getattr(ring, kind), array, **how),
            lambda: begin(array, **how).wait,
        )

    def close(self) -> None:
        """See :class:`System`."""
        self._ring.close()


def ping_pong(
    rank: int,
    array: Floats,
    result: Floats,
    send: Callable[[], object],
    receive: Callable[[], object],
) -> Slot:
    """Return the slot in which *array* is sent and *result* received, rank 0 sending first."""
    first, second = (send, receive) if rank == 0 else (receive, send)

    def call() -> Floats:
        first()
        second()
        return result

    return Slot(array, call)


class Gloo:
    """torch.distributed with its Gloo backend, in this process; in place where it works so."""

    def __init__(self, rank: int, size: int, rendezvous: str) -> None:
        # Before torch is imported. Gloo would otherwise listen where the host's name points.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch  # noqa: PLC0415  no dependency of ringd, and slow to import
        import torch.distributed as dist  # noqa: PLC0415

        torch.set_num_threads(1)
        self._rank = rank
        self._size = size
        self._torch: Any = torch
        self._dist: Any = dist
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size
        )

    def slot(self, mode: str, count: int, kind: str) -> Slot:  # noqa: ARG002 - there is one mode
        """See :class:`System`."""
        dist, torch = self._dist, self._torch
        tensor = torch.empty(count, dtype=torch.float32)
        if kind == "ping_pong":
            received, other = torch.empty(count, dtype=torch.float32), 1 - self._rank
            send = functools.partial(dist.send, tensor, other)
            receive = functools.partial(dist.recv, received, other)
            return ping_pong(self._rank, tensor.numpy(), received.numpy(), send, receive)
        given = {"all_gather": count * self._size, "reduce_scatter": count // self._size}
        result = tensor
        if kind not in {"all_reduce", "broadcast"}:
            result = torch.empty(given.get(kind, count), dtype=torch.float32)
        call = {
            "all_reduce": lambda **how: dist.all_reduce(tensor, **how),
            "broadcast": lambda **how: dist.broadcast(tensor, 0, **how),
            "all_gather": lambda **how: dist.all_gather_single(result, tensor, **how),
            "reduce_scatter": lambda **how: dist.reduce_scatter_single(result, tensor, **how),
            "all_to_all": lambda **how: dist.all_to_all_single(result, tensor, **how),
        }[kind]
        array: Floats = result.numpy()

        def reduce() -> Floats:
            call()
            return array

        def submit() -> Callable[[], Floats]:
            work = call(async_op=True)

            def wait() -> Floats:
                work.wait()
                return array

            return wait

        return Slot(tensor.numpy(), reduce, submit)

    def close(self) -> None:
        """See :class:`System`."""
        self._dist.destroy_process_group()


class Mpi:
    """Open MPI through mpi4py, in this process, which ``mpirun`` has started."""

    def __init__(self, rank: int, size: int, argument: None) -> None:  # noqa: ARG002
        from mpi4py import MPI  # noqa: PLC0415  no dependency of ringd

        self._world: Any = MPI.COMM_WORLD
        if (self._world.rank, self._world.size) != (rank, size):
            raise RuntimeError(f"this process is rank {self._world.rank} of {self._world.size}")

    def slot(self, mode: str, count: int, kind: str) -> Slot:  # noqa: ARG002 - there is one mode
        """See :class:`System`."""
        if kind != "all_reduce":
            raise NotImplementedError(f"{kind} is not compared with Open MPI")
        array, result, world = np.empty(count, FLOAT32), np.empty(count, FLOAT32), self._world

        def reduce() -> Floats:
            world.Allreduce(array, result)
            return result

        return Slot(array, reduce)

    def close(self) -> None:
        """See :class:`System`; mpi4py leaves at the process's end."""


def _roofline(*arguments: Any) -> System:
    from plain import Roofline  # noqa: PLC0415  which knows the insides of this build of ringd

    return Roofline(*arguments)


KINDS: dict[str, Callable[..., System]] = {
    "ringd": Ringd,
    "gloo": Gloo,
    "mpi": Mpi,
    "roofline": _roofline,
}
MODES = {"ringd": "ringd", "ringd-empty": "ringd", "gloo": "gloo", "roofline": "roofline"}
"""What can be asked for, and the kind of system that does it."""
