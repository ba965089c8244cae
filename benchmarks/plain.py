"""The roofline as a system that can be measured beside the others."""

from __future__ import annotations

import socket

import numpy as np
from roofline import exchange
from systems import FLOAT32, Floats, Slot

from ringd.collective.plan import DEFAULT_CHUNK_BYTES, Task
from ringd.collective.reduction import Reduction
from ringd.collective.ring_plans import ring_all_reduce
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer


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
        """See :class:`systems.System`."""
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
        """See :class:`systems.System`."""
        self._left.close()
        self._right.close()
