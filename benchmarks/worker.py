"""A worker: one member's program of one system, which lives as long as what is measured with it.

Started by :mod:`instrument.workers`, never by hand. It sleeps in a read of its pipe while others
are measured. A batch goes so: *prepare* (memory, inputs, warm-up calls), a barrier in the parent,
*go* at a moment that is the same for all members, the calls, and only then the check of every
single result.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np
from instrument.batch import Batch
from instrument.counters import sleeps
from instrument.modes import MODES
from instrument.patterns import Array, Pattern, expected, pattern_of
from peers.slots import Slot, System

SYSTEMS = {
    "ringd": ("peers.through_ringd", "Ringd"),
    "gloo": ("peers.gloo", "Gloo"),
    "mlx": ("peers.mlx", "Mlx"),
    "mpi": ("peers.mpi", "Mpi"),
    "floor": ("peers.floor", "Floor"),
    "relay": ("peers.relay", "Relay"),
    "nothing": ("peers.nothing", "Nothing"),
}
"""Where each stands. A worker imports its own: others may not be installed for its Python."""
_RANK_OF_MPI = "OMPI_COMM_WORLD_RANK"
_WORK = np.ones((64, 64), np.float32)


def main() -> None:
    """Connect to the parent, say which rank this is, be told the rest, work."""
    address, *given = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as connecting:
        connecting.connect(address)
        pipe = Connection(connecting.detach())
    pipe.send((int(given[0] if given else os.environ[_RANK_OF_MPI]), os.getpid()))
    kind, rank, size, argument = pipe.recv()
    try:
        module, name = SYSTEMS[kind]
        make = getattr(importlib.import_module(module), name)
        with contextlib.closing(make(rank, size, argument)) as system:
            pipe.send(True)
            with contextlib.suppress(EOFError):
                _serve(pipe, system, rank, size)
    except Exception:  # noqa: BLE001 - the parent reports it, whatever it is
        with contextlib.suppress(OSError):  # or is gone
            pipe.send(traceback.format_exc())


def _serve(pipe: Connection, system: System, rank: int, size: int) -> None:
    slots: list[Slot] = []
    of: tuple[object, ...] = ()
    while True:
        batch: Batch = pipe.recv()
        key = batch.mode, batch.nbytes, batch.kind, batch.dtype
        if key != of:
            slots, of = [], key  # one mode's tensors are worth their memory at a time
        while len(slots) < batch.calls:
            slots.append(system.slot(batch, _count(batch, size)))
        seconds, cpu, slept, results = _timed(pipe, batch, slots[: batch.calls], rank)
        wrong = sum(_count_wrong(batch, rank, size, i, each) for i, each in enumerate(results))
        results.clear()
        pipe.send((seconds, cpu, slept, wrong))


def _count(batch: Batch, size: int) -> int:
    """Return how many elements a rank hands over."""
    itemsize = 4 if batch.dtype == "float32" else 2
    return batch.nbytes // itemsize // (size if batch.kind == "all_gather" else 1)


def _timed(
    pipe: Connection, batch: Batch, slots: list[Slot], rank: int
) -> tuple[float, float, float, list[Array]]:
    pattern = _pattern(batch)
    together = _together(slots) if MODES[batch.mode].together else None
    warm: list[object] = []  # kept as those that are timed, for which there is memory then
    for index in range(batch.warm_up):
        # Filled anew each time: Gloo works in place.
        pattern.fill(slots[index].input, rank)
        if together is None:
            warm.append(slots[index].call())
    if together is not None:
        warm.append(together())
    warm.clear()
    _settle(slots)
    for index, slot in enumerate(slots):
        pattern.fill(slot.input, _offset(batch, index) + rank)
    pipe.send(True)
    start = pipe.recv()
    slept = sleeps(os.getpid())
    time.sleep(max(0.0, start - time.perf_counter()))
    used = time.process_time()
    if together is not None:
        seconds, results = _at_once(together)
    elif batch.in_flight:
        seconds, results = _in_flight(slots)
    elif batch.pause:
        seconds, results = _apart(slots, batch.pause)
    else:
        seconds, results = _in_sequence(slots, batch.work)
    used = time.process_time() - used
    slept = sleeps(os.getpid()) - slept
    _settle(slots)
    return seconds, used, slept, results


def _settle(slots: list[Slot]) -> None:
    if slots and slots[0].settle is not None:
        slots[0].settle()


def _in_sequence(slots: list[Slot], work: float) -> tuple[float, list[Array]]:
    calls = [slot.call for slot in slots]
    began = time.perf_counter()
    if work:
        results = []
        for call in calls:
            _compute(work)
            results.append(call())
    else:
        results = [call() for call in calls]
    return time.perf_counter() - began, results


def _in_flight(slots: list[Slot]) -> tuple[float, list[Array]]:
    submits = [slot.submit for slot in slots if slot.submit is not None]
    began = time.perf_counter()
    waits = [submit() for submit in submits]
    results = [wait() for wait in waits]
    return time.perf_counter() - began, results


def _together(slots: list[Slot]) -> Callable[[], Sequence[Array]]:
    """Return the one call of all *slots*."""
    make = slots[0].together
    assert make is not None  # noqa: S101 - of such a mode
    return make([slot.input for slot in slots])


def _at_once(call: Callable[[], Sequence[Array]]) -> tuple[float, list[Array]]:
    began = time.perf_counter()
    results = call()
    return time.perf_counter() - began, list(results)


def _apart(slots: list[Slot], pause: float) -> tuple[float, list[Array]]:
    """Make calls each of which finds everything asleep; the pauses do not count."""
    seconds, results = 0.0, []
    due = time.perf_counter()
    for slot in slots:
        # At moments that are the same for all members, so that none waits for another's pause.
        due += pause
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        results.append(slot.call())
        seconds += time.perf_counter() - began
    return seconds, results


def _compute(seconds: float) -> None:
    """Work with numpy for so many seconds of this thread's processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        np.dot(_WORK, _WORK)


def _count_wrong(batch: Batch, rank: int, size: int, index: int, result: Array) -> int:
    offset = _offset(batch, index)
    if batch.kind == "all_reduce":
        return _pattern(batch).count_wrong_sums(result, size, offset)
    if batch.kind == "nothing":
        return 0
    count = len(result) if batch.kind == "pass_on" else _count(batch, size)
    return int(np.count_nonzero(result != expected(batch.kind, count, rank, size, offset)))


def _offset(batch: Batch, index: int) -> int:
    # Calls that only pass their input on share its memory.
    return _pattern(batch).offset(batch.salt + (0 if batch.kind == "pass_on" else index))


def _pattern(batch: Batch) -> Pattern:
    return pattern_of(batch.dtype, MODES[batch.mode].wire)


if __name__ == "__main__":
    main()
