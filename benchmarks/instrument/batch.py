"""A batch: calls of one system that are timed together, and what came of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """Calls that are timed together, each with a tensor of its own."""

    mode: str
    """A way to use a system: a key of :data:`instrument.modes.MODES`."""
    nbytes: int
    """Of the larger one of input and result, as in nccl-tests."""
    calls: int
    warm_up: int = 0
    """Calls before those that are timed; at most ``calls``."""
    salt: int = 0
    """Makes the inputs differ from batch to batch; they differ from call to call anyway."""
    kind: str = "all_reduce"
    dtype: str = "float32"
    in_flight: bool = False
    """Submit all calls before waiting for the first."""
    pause: float = 0.0
    """Seconds asleep before each call; not counted."""
    work: float = 0.0
    """Seconds of processor time of numpy work before each call; counted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a batch."""

    seconds: float
    """The slowest member's time for all calls."""
    cpu: float
    """Processor seconds of all members' processes, daemons included."""
    sleeps: float
    """How often a thread of these went to sleep, to be woken: voluntary context switches."""
    wrong: int
    """Elements of all results of all members."""


class Failure(RuntimeError):
    """A worker failed; the text has its traceback."""
