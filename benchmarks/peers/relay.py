"""The floor under small calls: what a call through a daemon must cost, in plain Python.

A program hands its bytes to its daemon over a Unix socket, the daemon passes them on over TCP, adds
what comes from there, and answers. No recovery, no checks, no groups: a floor, not a design. This
is the program; run by itself, this module is the daemon::

    python -m peers.relay SOCKET OWN_HOST:PORT RIGHT_HOST:PORT MEMBERS SPIN_SECONDS

With a spin the daemon polls for so long before it sleeps.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time

import numpy as np
from instrument.batch import Batch
from instrument.patterns import Array

from peers.links import Ends, connect
from peers.slots import PATIENCE, Slot

_HEAD = struct.Struct("<II")
"""The length of what follows, and how many members it still goes to."""
MOST_BYTES = 64 << 10
"""Of a tensor: one message of a Unix socket carries it under every system's default limits."""


class Relay:
    """One program; *path* is its daemon's socket."""

    def __init__(self, rank: int, size: int, path: str) -> None:  # noqa: ARG002 - the daemon knows
        self._daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._daemon.connect(path)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def slot(self, batch: Batch, count: int) -> Slot:
        """See :class:`peers.slots.System`."""
        if batch.nbytes > MOST_BYTES:
            raise NotImplementedError(f"{batch.nbytes} bytes are no small call")
        array, daemon = np.empty(count, np.float32), self._daemon

        def call() -> Array:
            daemon.send(array.data)
            return np.frombuffer(daemon.recv(MOST_BYTES), np.float32)

        return Slot(array, call)

    def close(self) -> None:
        """See :class:`peers.slots.System`; its daemon goes, too."""
        self._daemon.close()


class _Daemon:
    """Adds the inputs of one call after the other."""

    def __init__(self, path: str, ends: Ends, size: int) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(1)
        self._left, self._right = connect(ends)
        self._program, _ = listener.accept()
        self._others = size - 1
        self._received = bytearray()
        self._own: list[bytes] = []
        self._inputs: list[bytes] = []
        """Of others, in the order of the calls: a neighbour may have begun the next one."""

    def serve(self, spin: float) -> None:
        """Go on until the program or a neighbour is gone."""
        poller = select.epoll()
        poller.register(self._left, select.EPOLLIN)
        poller.register(self._program, select.EPOLLIN)
        while True:
            events = poller.poll(0)
            until = time.monotonic() + spin
            while not events and time.monotonic() < until:
                events = poller.poll(0)
            for descriptor, _ in events or poller.poll():
                own = descriptor == self._program.fileno()
                if not (self._take_own() if own else self._take_others()):
                    return
            if self._own and len(self._inputs) >= self._others:
                total = np.frombuffer(self._own.pop(), np.float32)
                for other in self._inputs[: self._others]:
                    total = total + np.frombuffer(other, np.float32)
                self._program.send(total.data)
                del self._inputs[: self._others]

    def _take_own(self) -> bool:
        own = self._program.recv(MOST_BYTES)
        if own:
            self._own.append(own)
            self._right.sendall(_HEAD.pack(len(own), self._others) + own)
        return bool(own)

    def _take_others(self) -> bool:
        piece = self._left.recv(MOST_BYTES)
        received = self._received
        received += piece
        while len(received) >= _HEAD.size:
            length, hops = _HEAD.unpack_from(received)
            if len(received) < _HEAD.size + length:
                break
            other = bytes(received[_HEAD.size : _HEAD.size + length])
            del received[: _HEAD.size + length]
            self._inputs.append(other)
            if hops > 1:
                self._right.sendall(_HEAD.pack(length, hops - 1) + other)
        return bool(piece)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Be a daemon."""
    path, own, right, size, spin = sys.argv[1:]
    ends = Ends(_address(own), _address(right))
    _Daemon(path, ends, int(size)).serve(float(spin))


if __name__ == "__main__":
    main()
