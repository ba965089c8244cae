"""What is measured: each system's calls behind one face, as its users would make them.

A system makes *slots*. A slot is a tensor in the kind of memory that its mode of use is about,
and the calls that take it; whatever can be done before is done when the slot is made.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from roofline import exchange

import ringd
from ringd.collective.plan import DEFAULT_CHUNK_BYTES, Task
from ringd.collective.reduction import Reduction
from ringd.collective.ring_plans import ring_all_reduce
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer

Floats = npt.NDArray[np.float32]
FLOAT32 = np.dtype(np.float32)
PATIENCE = 120.0
"""Seconds after which a call, or a ring that does not form, is given up."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor: fill ``input``, then make the call once, in either way."""

    input: Floats
    reduce: Callable[[], Floats]
    """Makes the call and returns the result, which may be ``input`` itself."""
    submit: Callable[[], Callable[[], Floats]] | None = None
    """Starts that; calling what it returns waits for the result."""


class System(Protocol):
    """One member's end of a system."""

    def slot(self, mode: str, count: int, kind: str) -> Slot:
        """Return a new slot for calls of *kind* with *count* elements to hand over."""

    def close(self) -> None:
        """Leave."""


class Ringd:
    """Through the client library and the daemon of this rank.

    Modes: ``ringd`` reduces ordinary arrays, ``ringd-empty`` arrays made by ``ring.empty``.
    """

    def __init__(self, rank: int, size: int, socket_path: str) -> None:
        self._ring = ringd.connect(socket_path, timeout=PATIENCE)
        self._ring.wait_ready(PATIENCE)
        if (self._ring.rank, self._ring.size) != (rank, size):
            raise RuntimeError(f"the daemon is rank {self._ring.rank} of {self._ring.size}")

    def slot(self, mode: str, count: int, kind: str) -> Slot:
        """See :class:`System`."""
        ring = self._ring
        array = ring.empty(count, FLOAT32) if mode == "ringd-empty" else np.empty(count, FLOAT32)
        begin = getattr(ring, f"{kind}_async")
        return Slot(
            array,
            functools.partial(getattr(ring, kind), array, timeout=PATIENCE),
            lambda: begin(array, timeout=PATIENCE).wait,
        )

    def close(self) -> None:
        """See :class:`System`."""
        self._ring.close()


class Gloo:
    """torch.distributed with its Gloo backend, in this process; in place where it works so."""

    def __init__(self, rank: int, size: int, rendezvous: str) -> None:
        # Before torch is imported. Gloo would otherwise listen where the host's name points.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch  # noqa: PLC0415  no dependency of ringd, and slow to import
        import torch.distributed as dist  # noqa: PLC0415

        torch.set_num_threads(1)
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


class Roofline:
    """The same transfer over plain TCP connections: no daemon, no protocol (roofline.py)."""

    def __init__(self, rank: int, size: int, links: tuple[socket.socket, socket.socket]) -> None:
        self._rank = rank
        self._size = size
        self._left, self._right = links
        for link in links:
            link.setblocking(False)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reduction = Reduction("sum", FLOAT32, size)
        self._scratch = ScratchPool(DEFAULT_CHUNK_BYTES)

    def slot(self, mode: str, count: int, kind: str) -> Slot:  # noqa: ARG002 - there is one
        """See :class:`System`."""
        item = FLOAT32.itemsize
        task = Task(count, item, item, self._size, self._rank, DEFAULT_CHUNK_BYTES)
        plan = ring_all_reduce(task)
        source, target = np.empty(count, FLOAT32), np.zeros(count, FLOAT32)

        def reduce() -> Floats:
            ends = Spread([source]), Spread([target])
            transfer = Transfer(plan, self._reduction, *ends, self._scratch)
            exchange(transfer, self._left, self._right)
            return target

        return Slot(source, reduce)

    def close(self) -> None:
        """See :class:`System`."""
        self._left.close()
        self._right.close()


KINDS: dict[str, Callable[..., System]] = {"ringd": Ringd, "gloo": Gloo, "roofline": Roofline}
MODES = {"ringd": "ringd", "ringd-empty": "ringd", "gloo": "gloo", "roofline": "roofline"}
"""What can be asked for, and the kind of system that does it."""
