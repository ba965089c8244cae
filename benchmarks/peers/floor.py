"""The floor under large calls: the same bytes over the same connections, and nothing else.

Each member sends 2(n-1)/n times the tensor to its right neighbour and receives as much from its
left one. One thread does the one and one the other, each in a system call or two on the whole
memory; nothing is added, nothing waits for what another member has, and no Python runs on the way.
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


class Floor:
    """One member; its results are the inputs of its left neighbour."""

    def __init__(self, rank: int, size: int, ends: Ends) -> None:  # noqa: ARG002
        self._size = size
        self._left, self._right = connect(ends)
        self._given: queue.SimpleQueue[list[memoryview] | None] = queue.SimpleQueue()
        self._sent: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def slot(self, batch: Batch, count: int) -> Slot:  # noqa: ARG002 - it has one mode
        """See :class:`peers.slots.System`."""
        source, target = np.empty(count, np.float32), np.zeros(count, np.float32)
        outgoing, incoming = (self._pieces(array) for array in (source, target))

        def call() -> Array:
            self._given.put(outgoing)
            for piece in incoming:
                if self._left.recv_into(piece, 0, socket.MSG_WAITALL) != len(piece):
                    raise ConnectionError("the left neighbour is gone")
            self._sent.get()
            return target

        return Slot(source, call)

    def close(self) -> None:
        """See :class:`peers.slots.System`."""
        self._given.put(None)
        self._sender.join()
        self._left.close()
        self._right.close()

    def _pieces(self, array: Array) -> list[memoryview]:
        """Return 2(n-1)/n times *array*: all of it, and a part of it again."""
        again = len(array) * 2 * (self._size - 1) // self._size - len(array)
        return [part.view(np.uint8).data for part in (array, array[:again]) if len(part)]

    def _send(self) -> None:
        while (pieces := self._given.get()) is not None:
            for piece in pieces:
                self._right.sendall(piece)
            self._sent.put(None)
