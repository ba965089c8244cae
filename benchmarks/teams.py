"""Worker processes: one per member and system, kept alive, asleep unless their system's turn.

A worker sleeps in a read of its pipe while others are measured. A batch goes so: *prepare*
(memory, inputs, warm-up calls), a barrier in the parent, *go* at a moment that is the same for
all members, the calls, and only then the check of every single result.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, final

import numpy as np
from systems import FLOAT32, KINDS, PATIENCE, Floats, Slot, System

_PRIME = 61  # inputs repeat after so many elements, so that no chunk falls in step with them
_BLOCK = np.resize(np.arange(_PRIME, dtype=np.float32), _PRIME * 2048)
_SALTS = 4096  # small, so that all sums are exact in float32
_LEAD = 2e-3  # seconds from the barrier to the start
_EXIT_TIMEOUT = 20.0
_ANSWER_TIMEOUT = 3 * PATIENCE

_context = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Batch:
    """Calls that are timed together, each with a tensor of its own."""

    mode: str
    nbytes: int
    calls: int
    warm_up: int
    salt: int
    """Makes the inputs differ from batch to batch; they differ from call to call anyway."""
    in_flight: bool = False
    """Submit all calls before waiting for the first."""
    kind: str = "all_reduce"
    """What is called. *nbytes* are of the larger one of input and result, as in nccl-tests."""
    within: float = 0.0
    """What an all-reduce may be wrong by, as a part of its largest element."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a batch."""

    seconds: float
    """The slowest member's time."""
    cpu: float
    """CPU seconds of all members' processes, daemons included."""
    sleeps: float
    """How often a thread of these went to sleep, to be woken."""
    wrong: int
    """Elements of all results."""


class Failure(RuntimeError):
    """A worker failed; the text has its traceback."""


class Process(Protocol):
    """What a team needs of a process, as of multiprocessing."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""

    def is_alive(self) -> bool:
        """Whether it goes on."""

    def kill(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Those of one team."""

    pipes: list[Connection]
    """By rank."""
    processes: list[Process]


def start(kind: str, arguments: list[Any]) -> Workers:
    """Start a worker for each of *arguments*, from this process."""
    workers = Workers([], [])
    size = len(arguments)
    for rank, argument in enumerate(arguments):
        ours, theirs = _context.Pipe()
        process = _context.Process(
            target=work, args=(theirs, kind, rank, size, argument), daemon=True
        )
        process.start()
        theirs.close()  # so that the worker's death is the end of the pipe
        workers.pipes.append(ours)
        workers.processes.append(process)
    return workers


@final
class Team:
    """The workers of one kind of system, one per member; a context manager.

    Args:
        kind: A key of :data:`systems.KINDS`.
        workers: As :func:`start` returns them.
        servers: Processes that work for the members, whose CPU time counts as theirs.
    """

    def __init__(self, kind: str, workers: Workers, servers: Sequence[int] = ()) -> None:
        self._kind = kind
        self._servers = servers
        self._pipes = workers.pipes
        self._processes = workers.processes

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            # After a failure the others may wait for a member that is gone.
            process.join(_EXIT_TIMEOUT if error is None else 0.1)
            if process.is_alive():
                process.kill()
                process.join()

    def wait_ready(self) -> None:
        """Wait until every worker has joined its system."""
        self._answers()

    def measure(self, batch: Batch) -> Outcome:
        """Run *batch*."""
        self._tell(batch)
        self._answers()
        served, slept = sum(map(_cpu_time, self._servers)), sum(map(_sleeps, self._servers))
        self._tell(time.perf_counter() + _LEAD)
        seconds, cpu, sleeps, wrong = zip(*self._answers(), strict=True)
        served = sum(map(_cpu_time, self._servers)) - served
        slept = sum(map(_sleeps, self._servers)) - slept
        return Outcome(max(seconds), sum(cpu) + served, sum(sleeps) + slept, sum(wrong))

    def _tell(self, message: object) -> None:
        for pipe in self._pipes:
            pipe.send(message)

    def _answers(self) -> list[Any]:
        deadline = time.monotonic() + _ANSWER_TIMEOUT
        answers = []
        for rank, pipe in enumerate(self._pipes):
            who = f"{self._kind}, rank {rank}"
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise Failure(f"{who}: no answer within {_ANSWER_TIMEOUT:g} s")
            try:
                answer = pipe.recv()
            except EOFError:
                raise Failure(f"{who}: died") from None
            if isinstance(answer, str):
                raise Failure(f"{who}:\n{answer}")
            answers.append(answer)
        return answers


def _cpu_time(pid: int) -> float:
    """Return the CPU seconds of the process *pid*, to the nanosecond; NaN where Linux is not."""
    if sys.platform != "linux":
        return math.nan
    # What clock_getcpuclockid(3) returns: a process's clock, of its scheduled time.
    return time.clock_gettime((~pid << 3) | 2)


def _sleeps(pid: int) -> float:
    """Return how often the threads of *pid* went to sleep by themselves; NaN without /proc."""
    if sys.platform != "linux":
        return math.nan
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def work(pipe: Connection, kind: str, rank: int, size: int, argument: Any) -> None:
    """Be a worker, until the parent closes the pipe."""
    try:
        with contextlib.closing(KINDS[kind](rank, size, argument)) as system:
            pipe.send(True)
            with contextlib.suppress(EOFError):
                _serve(pipe, system, rank, size)
    except Exception:  # noqa: BLE001 - the parent reports it, whatever it is
        with contextlib.suppress(OSError):  # or is gone
            pipe.send(traceback.format_exc())


def _serve(pipe: Connection, system: System, rank: int, size: int) -> None:
    slots: dict[tuple[str, int, int], list[Slot]] = {}
    while True:
        batch: Batch = pipe.recv()
        key = f"{batch.mode} {batch.kind}", batch.nbytes, batch.calls
        if any(nbytes != batch.nbytes for _, nbytes, _ in slots):
            slots.clear()  # the modes take turns; only the size in hand is worth its memory
        if key not in slots:
            count = batch.nbytes // FLOAT32.itemsize
            count //= size if batch.kind == "all_gather" else 1
            slots[key] = [system.slot(batch.mode, count, batch.kind) for _ in range(batch.calls)]
        seconds, cpu, sleeps, results = _timed(pipe, batch, slots[key], rank)
        wrong = sum(
            _count_wrong(results[i], size, _offset(batch, i), batch.within)
            if batch.kind == "all_reduce"
            else int(np.count_nonzero(results[i] != _expected(batch, rank, size, i)))
            for i in range(batch.calls)
        )
        results.clear()
        pipe.send((seconds, cpu, sleeps, wrong))


def _timed(
    pipe: Connection, batch: Batch, slots: list[Slot], rank: int
) -> tuple[float, float, float, list[Floats]]:
    warm = []  # kept as those that are timed, for which there is memory then
    for index in range(batch.warm_up):
        # Filled anew each time: Gloo works in place.
        _fill(slots[index].input, rank)
        warm.append(slots[index].reduce())
    warm.clear()
    for index, slot in enumerate(slots):
        _fill(slot.input, _offset(batch, index) + rank)
    pipe.send(True)
    start = pipe.recv()
    slept = _sleeps(os.getpid())
    time.sleep(max(0.0, start - time.perf_counter()))
    if batch.in_flight:
        submits = [slot.submit for slot in slots if slot.submit is not None]
        began, used = time.perf_counter(), time.process_time()
        waits = [submit() for submit in submits]
        results = [wait() for wait in waits]
    else:
        reduces = [slot.reduce for slot in slots]
        began, used = time.perf_counter(), time.process_time()
        results = [reduce() for reduce in reduces]
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    return seconds, cpu, _sleeps(os.getpid()) - slept, results


def _offset(batch: Batch, index: int) -> int:
    return (batch.salt + index) % _SALTS


def _fill(array: Floats, offset: int) -> None:
    for start in range(0, len(array), len(_BLOCK)):
        part = array[start : start + len(_BLOCK)]
        np.add(_BLOCK[: len(part)], np.float32(offset), out=part)


def _expected(batch: Batch, rank: int, size: int, index: int) -> Floats:
    """Return the result of a call that is none of all_reduce; the sums are exact."""
    count = batch.nbytes // FLOAT32.itemsize // (size if batch.kind == "all_gather" else 1)
    inputs = [np.empty(count, FLOAT32) for _ in range(size)]
    for other, array in enumerate(inputs):
        _fill(array, _offset(batch, index) + other)
    part = slice(rank * (count // size), (rank + 1) * (count // size))
    if batch.kind == "broadcast":
        return inputs[0]
    if batch.kind == "ping_pong":
        return inputs[1 - rank]
    if batch.kind == "all_gather":
        return np.concatenate(inputs)
    if batch.kind == "reduce_scatter":
        total: Floats = np.sum([array[part] for array in inputs], axis=0)
        return total
    return np.concatenate([array[part] for array in inputs])


def _count_wrong(result: Floats, size: int, offset: int, within: float) -> int:
    """Return how many elements are not the sum of all ranks' inputs, which is exact."""
    wrong = 0
    expected = _BLOCK[: len(result)] * np.float32(size) + np.float32(
        size * offset + size * (size - 1) // 2
    )
    largest = np.max(expected)
    for start in range(0, len(result), len(expected)):
        part = result[start : start + len(expected)]
        error = np.abs(part - expected[: len(part)])
        wrong += int(np.count_nonzero(~(error <= within * largest)))  # also NaN
    return wrong


@contextlib.contextmanager
def all_ready(teams: dict[str, Team]) -> Iterator[dict[str, Team]]:
    """Enter all *teams*, which start side by side, and wait for them."""
    with contextlib.ExitStack() as stack:
        for team in teams.values():
            stack.enter_context(team)
        for team in teams.values():
            team.wait_ready()
        yield teams
