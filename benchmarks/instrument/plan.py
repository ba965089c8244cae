"""What is measured in which order, and how many calls make a batch. Pure.

Everything that is compared stands in one *panel*. It is measured round by round, every cell once in
each round, so that a change of the machine's pace meets all of them alike. Who begins changes with
the round. Round 0 is for warming up: it also tells how long a call takes, and so how many of them
make a batch that is long enough to be timed, and not longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from instrument.batch import Batch
from instrument.modes import MODES
from instrument.results import Key

T = TypeVar("T")

_MOST_BYTES = 32 << 20
"""Of the tensors of a batch, if that makes more than one call: each call has its own."""
_MOST_CALLS = 300
_LEAST_CALLS = 5
_FIRST_CALLS = 10
_WARM_UP = 10
_WARM_ALL_FROM = 256 << 10
"""Bytes of a tensor from which on fresh memory costs more than a call: all of it is warmed up."""
_CHECK_SECONDS_PER_BYTE = 4e-9
"""Filling a tensor and checking a result of it, with as many members as cores."""
_BATCH_SECONDS = 0.02
"""To start a batch and to collect its outcome."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that is measured, once in every round."""

    what: str
    """The benchmark's name for this sort of figure, the same for all that are compared."""
    mode: str
    nbytes: int
    calls: int | None = None
    """In a batch; None: as many as take ``budget`` seconds."""
    budget: float = 0.15
    """Seconds that the timed calls of a batch may take."""
    options: dict[str, float | str | bool] = field(default_factory=dict)
    """More of the batch's fields, by name."""
    pace: float = 0.5e9
    """Bytes per second that a large call may be expected to make, for the forecast of its time."""

    def batch(self, number: int, per_call: float | None) -> Batch:
        """Return the batch of round *number*, when a call has taken *per_call* seconds so far."""
        calls = self.calls or calls_for(self.nbytes, self.budget, per_call)
        warm_up = calls if self.nbytes >= _WARM_ALL_FROM else min(calls, _WARM_UP)
        options: dict[str, Any] = {"kind": MODES[self.mode].kind, **self.options}
        return Batch(self.mode, self.nbytes, calls, warm_up, number * calls, **options)

    def key(self, n: int) -> Key:
        """Return under what the results of *n* members have it."""
        return Key(self.what, n, self.nbytes, self.mode)


Panel = Sequence[Cell]
"""Cells that are measured in turn."""


def panel(what: str, modes: Sequence[str], nbytes: int, **options: Any) -> Panel:
    """Return the panel of one size for those *modes* that say something for it.

    *options*: more of :class:`Cell`'s fields.
    """
    return [Cell(what, mode, nbytes, **options) for mode in modes if MODES[mode].takes(nbytes)]


def calls_for(nbytes: int, budget: float, per_call: float | None) -> int:
    """Return how many calls make a batch.

    Args:
        nbytes: Of each call's tensor.
        budget: Seconds that the batch may take.
        per_call: Seconds that a call takes; None as long as that is unknown.
    """
    room = max(1, _MOST_BYTES // nbytes)
    if per_call is None:
        return min(room, _FIRST_CALLS)
    return min(room, max(_LEAST_CALLS, min(_MOST_CALLS, round(budget / per_call))))


def in_turn(panel: Sequence[T], count: int) -> Iterator[tuple[int, T]]:
    """Yield (round, one of *panel*) in the order of measuring; round 0 is before the *count*."""
    for number in range(count + 1):
        first = number % len(panel)
        for each in (*panel[first:], *panel[:first]):
            yield number, each


def seconds_of(cell: Cell) -> float:
    """Return about how long a batch of *cell* takes, for the forecast of the remaining time."""
    transfer = cell.nbytes / cell.pace
    calls = 2 * max(1, min(_MOST_BYTES // cell.nbytes, _LEAST_CALLS))  # warming up, and measured
    return _BATCH_SECONDS + max(
        1.2 * cell.budget, calls * (transfer + cell.nbytes * _CHECK_SECONDS_PER_BYTE)
    )
