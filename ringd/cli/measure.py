"""Measures links and all-reduces, as one of the programs that ``bench`` is on all members."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import ringd
from ringd.cli.figures import CallFigure, LinkFigure

_ROUNDS = 30
_REPEATS = 3
_FIRST = 1 << 20
_LARGEST = 64 << 20
_FOR = 0.5
"""Seconds that a large message, or the calls of one size, should take, so that a slow link does not
take minutes."""

_MOST_CALLS = 50
_SMALL = np.zeros(1)

Tell = Callable[[str], None]
_Array = np.ndarray[Any, np.dtype[Any]]


def links(ring: ringd.Ring, tell: Tell) -> list[LinkFigure]:
    """Return every link's figures, the same on all ranks; one is measured at a time.

    Raises:
        RingError: As of any call.
    """
    if ring.size == 1:
        return []
    own = np.zeros(2)
    for source in range(ring.size):
        to = (source + 1) % ring.size
        tell(f"link {source + 1} of {ring.size}: {ring.nodes[source]} -> {ring.nodes[to]}")
        ring.barrier()
        if ring.rank == source:
            own[:] = _ask(ring, to)
        elif ring.rank == to:
            _answer(ring, source)
    found = ring.all_gather(own).reshape(ring.size, 2)
    return [
        LinkFigure(name, ring.nodes[(rank + 1) % ring.size], float(trip), float(bandwidth))
        for rank, (name, (trip, bandwidth)) in enumerate(zip(ring.nodes, found, strict=True))
    ]


def _ask(ring: ringd.Ring, to: int) -> tuple[float, float]:
    trips = [_trip(ring, to, _SMALL) for _ in range(_ROUNDS)]
    first = _trip(ring, to, np.zeros(_FIRST // 8))
    size = int(min(_LARGEST, max(_FIRST, _FOR * _FIRST / first)))
    ring.send(np.array([size]), to=to)
    large = np.zeros(size // 8)
    fastest = min(_trip(ring, to, large) for _ in range(_REPEATS))
    return median(trips), large.nbytes / fastest


def _trip(ring: ringd.Ring, to: int, message: _Array) -> float:
    began = time.perf_counter()
    ring.send(message, to=to)
    ring.recv(_SMALL.shape, source=to)
    return time.perf_counter() - began


def _answer(ring: ringd.Ring, source: int) -> None:
    for shape in [_SMALL.shape] * _ROUNDS + [(_FIRST // 8,)]:
        _take(ring, source, shape)
    (size,) = ring.recv(1, source=source, dtype=np.int64)
    for _ in range(_REPEATS):
        _take(ring, source, (int(size) // 8,))


def _take(ring: ringd.Ring, source: int, shape: tuple[int, ...]) -> None:
    ring.recv(shape, source=source)
    ring.send(_SMALL, to=source)


def all_reduces(ring: ringd.Ring, sizes: Iterable[int], tell: Tell) -> Iterator[CallFigure]:
    """Yield the figures of each size in bytes, the same on all ranks.

    Raises:
        RingError: As of any call.
    """
    for size in sizes:
        tell(f"all-reduce of {size} bytes")
        x = np.full(size // 4, ring.rank + 1, np.float32)
        y = np.empty_like(x)
        seconds, wrong = zip(
            _time(ring, partial(_out_of_place, ring, x)),
            _time(ring, partial(_in_place, ring, x, y)),
            strict=True,
        )
        means = ring.all_reduce(np.array(seconds), "mean")
        out_wrong, in_wrong = ring.all_reduce(np.array(wrong))
        yield CallFigure(
            size, ring.size, float(means[0]), float(means[1]), (int(out_wrong), int(in_wrong))
        )


def _out_of_place(ring: ringd.Ring, x: _Array) -> _Array:
    return ring.all_reduce(x)


def _in_place(ring: ringd.Ring, x: _Array, y: _Array) -> _Array:
    y[...] = x  # a copy, which takes far less than the call
    return ring.all_reduce(y, out=y)


def _time(ring: ringd.Ring, call: Callable[[], _Array]) -> tuple[float, int]:
    """Return the seconds of a call, and how many elements of its result are wrong."""
    call()
    began = time.perf_counter()
    result = call()
    took = time.perf_counter() - began
    count = int(min(_MOST_CALLS, max(1, _FOR / took)))
    count = int(ring.broadcast(np.array([count]), root=0)[0])
    ring.barrier()
    began = time.perf_counter()
    for _ in range(count):
        call()
    took = (time.perf_counter() - began) / count
    right = ring.size * (ring.size + 1) // 2  # of 1 + 2 + ..., exact in float32
    return took, int(np.count_nonzero(result != right))
