"""The most that a ring of plain TCP connections and numpy additions carries on this machine.

The same bytes over the same kind of connections and the same additions as in the daemons, in
one process per member with one selector loop, but without clients, daemons or frames beyond an
8-byte length. What ringd reaches is to be read beside this number::

    python benchmarks/roofline.py --size 4 --sizes 1MiB,16MiB,64MiB
    python benchmarks/roofline.py --size 2 --sizes 64MiB --chunks 64KiB,256KiB,1MiB

Prints for every tensor size and chunk size the median over the repetitions of the slowest
member's time, algbw (tensor bytes by that time), busbw (algbw times 2(n-1)/n, what each link
carries) and how many elements of all members' results were wrong.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import numpy as np

from ringd.collective.plan import DEFAULT_CHUNK_BYTES, Task
from ringd.collective.reduction import DTYPE_NAMES, Array, Reduction, dtype_from_name
from ringd.collective.ring_plans import ring_all_reduce
from ringd.collective.spread import Spread
from ringd.collective.transfer import ScratchPool, Transfer
from ringd.config.units import parse_size

LENGTH = struct.Struct("<Q")
PATTERN = 61
"""Inputs repeat after so many elements: a prime, so that no chunk falls in step with it."""
PATIENCE = 120.0
"""Seconds after which a member gives the others up."""


@dataclass(frozen=True, slots=True)
class Run:
    """One line of the table: which tensor, in which chunks, how often."""

    nbytes: int
    chunk_bytes: int
    dtype: str
    repetitions: int
    warm_up: int = 2


def fill(left: socket.socket, memory: memoryview) -> Iterator[bool]:
    """Receive until *memory* is full; yield False whenever the socket is empty."""
    done = 0
    while done < len(memory):
        try:
            count = left.recv_into(memory[done:])
        except BlockingIOError:
            yield False
            continue
        if count == 0:
            raise ConnectionError("the left neighbour is gone")
        done += count


def receive_chunks(transfer: Transfer, left: socket.socket) -> Iterator[bool]:
    """Receive and reduce; yield True after each chunk, False whenever the socket is empty."""
    header = memoryview(bytearray(LENGTH.size))
    for index in range(len(transfer.plan.receives)):
        yield from fill(left, header)
        (length,) = LENGTH.unpack(header)
        yield from fill(left, transfer.receive_buffer(index, length))
        transfer.received(index)
        yield True


def send_chunks(transfer: Transfer, right: socket.socket) -> Iterator[bool]:
    """Send all chunks; yield True whenever the socket is full, False when nothing may go yet."""
    while True:
        chunk = transfer.next_send()
        if chunk is None:
            yield False
            continue
        index, memory = chunk
        buffers = [memoryview(LENGTH.pack(len(memory))), memory]
        while buffers:
            try:
                count = right.sendmsg(buffers)
            except BlockingIOError:
                yield True
                continue
            while buffers and count >= len(buffers[0]):
                count -= len(buffers.pop(0))
            if buffers:
                buffers[0] = buffers[0][count:]
        transfer.sent(index)


def exchange(transfer: Transfer, left: socket.socket, right: socket.socket) -> None:
    """Run *transfer* to its end: receive from the left, send to the right, sleep between."""
    receive = functools.partial(next, receive_chunks(transfer, left), False)
    send = functools.partial(next, send_chunks(transfer, right))
    with selectors.DefaultSelector() as selector:
        selector.register(left, selectors.EVENT_READ)
        waiting = False
        while True:
            full = send()
            while receive():
                full = send()
            if transfer.finished:
                return
            if full and not waiting:
                selector.register(right, selectors.EVENT_WRITE)
            elif waiting and not full:
                selector.unregister(right)
            waiting = full
            selector.select()


def count_wrong(result: Array, size: int) -> int:
    """Return how many elements of *result* are not the sum of all members' inputs."""
    expected = pattern(result) * size + size * (size - 1) // 2
    return int(np.count_nonzero(result != expected.astype(result.dtype)))


def pattern(like: Array) -> Array:
    """Return the integers that rank 0 contributes; rank r contributes r more."""
    return np.arange(len(like)) % PATTERN


def member(
    *,
    rank: int,
    size: int,
    left: socket.socket,
    right: socket.socket,
    runs: list[Run],
    barrier: Barrier,
    results: Connection,
) -> None:
    """Be one member: do all *runs* and report each one's times and number of wrong elements."""
    for link in (left, right):
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for run in runs:
        dtype = dtype_from_name(run.dtype)
        count = run.nbytes // dtype.itemsize
        reduction = Reduction("sum", dtype, size)
        widths = dtype.itemsize, reduction.accumulator.itemsize
        plan = ring_all_reduce(Task(count, *widths, size, rank, run.chunk_bytes))
        scratch = ScratchPool(run.chunk_bytes)
        source, target = np.empty(count, dtype), np.zeros(count, dtype)
        source[:] = pattern(source) + rank
        ends = Spread([source]), Spread([target])
        times = []
        for _ in range(run.warm_up + run.repetitions):
            barrier.wait(PATIENCE)
            started = time.perf_counter()
            exchange(Transfer(plan, reduction, *ends, scratch), left, right)
            times.append(time.perf_counter() - started)
        results.send((times[run.warm_up :], count_wrong(target, size)))


def connected_pairs(count: int) -> list[tuple[socket.socket, socket.socket]]:
    """Return *count* TCP connections over loopback as (dialing end, accepting end)."""
    pairs = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(count):
            dialed = socket.create_connection(server.getsockname())
            pairs.append((dialed, server.accept()[0]))
    return pairs


def measure(size: int, runs: list[Run]) -> Iterator[tuple[Run, float, int]]:
    """Start *size* members; yield each run with its median time in seconds and wrong elements."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(size)
    pairs = connected_pairs(size)
    members, pipes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        arguments = {
            "rank": rank,
            "size": size,
            "left": pairs[rank - 1][1],
            "right": pairs[rank][0],
            "runs": runs,
            "barrier": barrier,
            "results": theirs,
        }
        process = context.Process(target=member, kwargs=arguments, daemon=True)
        process.start()
        theirs.close()  # so that a member's death is the end of its pipe
        members.append(process)
        pipes.append(ours)
    for pair in pairs:
        for link in pair:
            link.close()
    for run in runs:
        reports = [pipe.recv() for pipe in pipes]
        slowest = [max(times) for times in zip(*(times for times, _ in reports), strict=True)]
        yield run, statistics.median(slowest), sum(wrong for _, wrong in reports)
    for process in members:
        process.join()


def human(nbytes: int) -> str:
    """Return *nbytes* in the largest unit that leaves a whole number."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 1 << power and nbytes % (1 << power) == 0:
            return f"{nbytes >> power} {unit}"
    return f"{nbytes} B"


def sizes(text: str) -> list[int]:
    """Return the bytes in a list such as ``"1MiB,16MiB"``."""
    return [parse_size(part) for part in text.split(",")]


def main() -> None:
    """Measure what the command line asks for and print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=2, help="members, one process each")
    parser.add_argument("--sizes", type=sizes, default="1MiB,16MiB,64MiB", help="of the tensor")
    parser.add_argument("--chunks", type=sizes, default=[DEFAULT_CHUNK_BYTES], help="chunk sizes")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="float32")
    parser.add_argument(
        "--repetitions", type=int, default=11, help="of each run; the median counts"
    )
    chosen = parser.parse_args()
    runs = [
        Run(nbytes, chunk_bytes, chosen.dtype, chosen.repetitions)
        for nbytes in chosen.sizes
        for chunk_bytes in chosen.chunks
    ]
    bus_factor = 2 * (chosen.size - 1) / chosen.size
    print(f"# all-reduce sum {chosen.dtype}, n = {chosen.size}, loopback, in process")
    print(
        f"{'size':>10} {'chunk':>10} {'time us':>10} {'algbw GB/s':>10} {'busbw':>6} {'#wrong':>6}"
    )
    for run, seconds, wrong in measure(chosen.size, runs):
        algbw = run.nbytes / seconds / 1e9
        print(
            f"{human(run.nbytes):>10} {human(run.chunk_bytes):>10} {seconds * 1e6:>10.0f} "
            f"{algbw:>10.2f} {algbw * bus_factor:>6.2f} {wrong:>6}",
            flush=True,
        )


if __name__ == "__main__":
    main()
