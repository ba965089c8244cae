"""The floor under large calls: the same bytes over the same connections, and nothing else.

Each member sends 2(n-1)/n times the tensor to its right neighbour and receives as much from its
left one. One thread does the one and one the other, each in one system call on a list of buffers;
nothing is added, nothing waits for what another member has, and no Python runs on the way.

The mode ``floor`` sends one buffer over and over and receives into another, both of which stay in
the processor's cache, as iperf3 does: what TCP carries here. ``floor-memory`` sends the whole
tensor and receives a whole one, as every all-reduce must in the end.
"""

from __future__ import annotations

import queue
import socket
import threading

import numpy as np
from instrument.batch import Batch
from instrument.patterns import Array

from peers.links import Ends, connect
from peers.slots import Slot

_BUFFER = 1 << 18  # elements


class Floor:
    """One member; its results are the inputs of its left neighbour."""

    def __init__(self, rank: int, size: int, ends: Ends) -> None:  # noqa: ARG002
        self._size = size
        self._left, self._right = connect(ends)
        self._warm = np.zeros(_BUFFER, np.float32), np.zeros(_BUFFER, np.float32)
        self._given: queue.SimpleQueue[list[memoryview] | None] = queue.SimpleQueue()
        self._sent: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def slot(self, batch: Batch, count: int) -> Slot:
        """See :class:`peers.slots.System`; those of ``floor`` share their memory."""
        if batch.mode == "floor":
            source, target = (array[:count] for array in self._warm)
        else:
            source, target = np.empty(count, np.float32), np.zeros(count, np.float32)
        total = batch.nbytes * 2 * (self._size - 1) // self._size
        outgoing, incoming = _repeated(source, total), _repeated(target, total)

        def call() -> Array:
            self._given.put(outgoing)
            received, *_ = self._left.recvmsg_into(incoming, 0, socket.MSG_WAITALL)
            if received != total or self._sent.get() != total:
                raise ConnectionError(f"{received} of {total} bytes came")
            return target

        return Slot(source, call)

    def close(self) -> None:
        """See :class:`peers.slots.System`."""
        self._given.put(None)
        self._sender.join()
        self._left.close()
        self._right.close()

    def _send(self) -> None:
        while (buffers := self._given.get()) is not None:
            self._sent.put(self._right.sendmsg(buffers))


def _repeated(array: Array, total: int) -> list[memoryview]:
    """Return *array* so many times, and a part of it, that it makes *total* bytes."""
    memory = array.view(np.uint8).data
    times, rest = divmod(total, len(memory))
    return [memory] * times + ([memory[:rest]] if rest else [])
