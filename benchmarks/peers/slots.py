"""The face that every system has here.

A system makes *slots*. A slot is a tensor in the kind of memory that its mode of use is about,
and the calls that take it; whatever can be done before is done when the slot is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from instrument.batch import Batch
from instrument.patterns import Array

PATIENCE = 120.0
"""Seconds after which a call, or a system that does not come together, is given up."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor: fill ``input``, then make the call once, in either way."""

    input: Array
    call: Callable[[], Array]
    """Makes the call and returns the result, which may be ``input`` itself. A ``ping_pong`` is a
    message to the other rank and one from it, which is the result; rank 0 sends first."""
    submit: Callable[[], Callable[[], Array]] | None = None
    """Starts that; calling what it returns waits for the result."""
    together: Callable[[Sequence[Array]], Callable[[], Sequence[Array]]] | None = None
    """Given the inputs of some slots, returns what makes one call of them all, and returns their
    results."""
    settle: Callable[[], object] | None = None
    """Sees to it, after the last of some calls, that those of the other ranks come to their end."""


class System(Protocol):
    """One member's end of a system."""

    def slot(self, batch: Batch, count: int) -> Slot:
        """Return a new slot for calls of *batch* with *count* elements to hand over."""

    def close(self) -> None:
        """Leave."""


def ping_pong(
    rank: int,
    array: Array,
    result: Array,
    send: Callable[[], object],
    receive: Callable[[], object],
) -> Slot:
    """Return the slot in which *array* is sent and *result* received, rank 0 sending first."""
    first, second = (send, receive) if rank == 0 else (receive, send)

    def call() -> Array:
        first()
        second()
        return result

    return Slot(array, call)
