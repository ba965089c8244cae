"""What does a chunk of an all-reduce cost, by dtype and ``ring.protect``? No daemon, no program.

    python benchmarks/chunk_cost.py [--size 64MiB] [--rounds 15] [--dtypes float32,float16,bfloat16]

Two members in one process: their links over loopback, their plans and transfers, from one long
array into another, neither of which any cache holds. A round makes one all-reduce of each kind, in
turn. What counts is the least processor time, kernel included, for each 512 KiB that a member sends
and receives, half of which it adds: what else the machine does only adds to that.
"""

from __future__ import annotations

import argparse
import socket
import time

import numpy as np
from instrument.sizes import human

from ringd.collective.plan import DEFAULT_CHUNK_BYTES, Task
from ringd.collective.reduction import Array, Reduction, dtype_from_name, quiet
from ringd.collective.ring_plans import ring_all_reduce
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer
from ringd.config.units import parse_size
from ringd.loop import Loop
from ringd.net.link import Link
from ringd.wire.link.agreement import Secrets
from ringd.wire.link.frames import FrameType, Header
from ringd.wire.link.handshake import Peer

PROTECTIONS = ("off", "integrity", "encrypt")
KEYS = (b"1" * 32, b"2" * 32)


class Member:
    """One of two members, as its links' handler."""

    def __init__(self, ring: Ring, rank: int, dtype: np.dtype[np.generic], nbytes: int) -> None:
        self._ring = ring
        self._reduction = Reduction("sum", dtype, 2)
        count = nbytes // dtype.itemsize
        self.source = np.resize((np.arange(1 << 16) % 251 / 8).astype(dtype), count)
        self.target: Array = np.zeros(count, dtype)
        itemsizes = dtype.itemsize, self._reduction.accumulator.itemsize
        self._plan = ring_all_reduce(Task(count, *itemsizes, 2, rank))
        self._scratch = ScratchPool(DEFAULT_CHUNK_BYTES)
        self.right: Link
        self.begin()

    def begin(self) -> None:
        """Get ready for a call."""
        sides = Spread([self.source]), Spread([self.target])
        self._transfer = Transfer(self._plan, self._reduction, *sides, self._scratch)

    def _progress(self) -> None:
        if self._transfer.finished:
            self._ring.finished()

    def frame_received(self, *_: object) -> None:
        """Heartbeats alone are sent beside the chunks."""

    def data_buffer(self, _link: Link, header: Header) -> memoryview:
        """Give the chunk's place."""
        return self._transfer.receive_buffer(header.index, header.length)

    def data_received(self, _link: Link, header: Header) -> None:
        """Reduce the chunk, and send on what that made possible."""
        self._transfer.received(header.index)
        self.right.kick()
        self._progress()

    def next_data(self, link: Link) -> tuple[Header, memoryview] | None:
        """Give the next chunk."""
        sending = self._transfer.next_send() if link is self.right else None
        if sending is None:
            return None
        index, chunk = sending
        return Header(FrameType.DATA, len(chunk), index=index), chunk

    def data_sent(self, _link: Link, header: Header) -> None:
        """Its memory is free."""
        self._transfer.sent(header.index)
        self._progress()

    def link_lost(self, _link: Link, reason: str) -> None:
        """Fail."""
        raise SystemExit(reason)


class Ring:
    """Two members, and a link from each to the other."""

    def __init__(self, protect: str, dtype: str, nbytes: int) -> None:
        self._loop = Loop()
        self._nbytes = nbytes
        self._running = 0
        kind = dtype_from_name(dtype)
        self._members = [Member(self, rank, kind, nbytes) for rank in range(2)]
        self._links = []
        for left, right in (self._members, self._members[::-1]):
            with socket.create_server(("127.0.0.1", 0)) as server:
                near = socket.create_connection(server.getsockname())
                far, _ = server.accept()
            left.right = self._link(near, protect, KEYS, left)
            self._links += [left.right, self._link(far, protect, KEYS[::-1], right)]

    def _link(
        self, sock: socket.socket, protect: str, keys: tuple[bytes, ...], member: Member
    ) -> Link:
        secrets = Secrets("AES-256-GCM", protect == "encrypt", *keys)
        return Link(
            *(self._loop, sock),
            Peer("peer", 0, 1, "link", secrets=None if protect == "off" else secrets),
            side="left",
            address="",
            handler=member,
            heartbeat=60.0,
            lost_after=180.0,
        )

    def finished(self) -> None:
        """One of the members has its result, and the other one all that it needs."""
        self._running -= 1
        if not self._running:
            self._loop.stop()

    def call(self) -> float:
        """Make one all-reduce; return the processor time for each 512 KiB, in seconds."""
        self._running = len(self._members)
        for member in self._members:
            member.begin()
        began = time.process_time()
        for member in self._members:
            member.right.kick()
        self._loop.run()
        took = time.process_time() - began
        for member in self._members:
            assert member.target[1] == 2 * member.source[1]  # noqa: S101 - or nothing was measured
        return took / (len(self._members) * self._nbytes / DEFAULT_CHUNK_BYTES)

    def close(self) -> None:
        """End the links."""
        for link in self._links:
            link.close("over")
        self._loop.close()


def main() -> None:
    """Print a line for each dtype."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, default=64 << 20, help="of the tensor")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtypes", default="float32,float16,bfloat16")
    how = parser.parse_args()
    quiet()
    nbytes: int = how.size
    print(f"| all-reduce of {human(nbytes)} | {' | '.join(PROTECTIONS)} |")
    print(f"| --- |{' ---: |' * len(PROTECTIONS)}")
    for dtype in how.dtypes.split(","):
        rings = {protect: Ring(protect, dtype, nbytes) for protect in PROTECTIONS}
        times: dict[str, list[float]] = {protect: [] for protect in PROTECTIONS}
        for _ in range(how.rounds):
            for protect, ring in rings.items():
                times[protect].append(ring.call())
        row = " | ".join(f"{min(times[protect]) * 1e6:.0f} us" for protect in PROTECTIONS)
        print(f"| {dtype} | {row} |", flush=True)
        for ring in rings.values():
            ring.close()


if __name__ == "__main__":
    main()
