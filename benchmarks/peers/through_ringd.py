"""ringd, through its client library and the daemon of the rank's machine.

Imports only what every build of it has, as a former one is measured too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from instrument.batch import Batch
from instrument.modes import MODES

import ringd
from peers.slots import PATIENCE, Slot, ping_pong


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program is that uses ringd."""

    socket: str
    """Of its daemon."""
    local_rank: int = 0
    local_size: int = 1
    group: str = "default"


class Ringd:
    """Modes that end in ``-empty`` take arrays made by ``ring.empty``, the others ordinary ones."""

    def __init__(self, rank: int, size: int, place: Place) -> None:
        several: dict[str, Any] = {}
        if place.local_size > 1:
            several = {"local_rank": place.local_rank, "local_size": place.local_size}
        self._ring = ringd.connect(place.socket, group=place.group, timeout=PATIENCE, **several)
        self._ring.wait_ready(PATIENCE)
        if (self._ring.rank, self._ring.size) != (rank, size):
            raise RuntimeError(f"the daemon is rank {self._ring.rank} of {self._ring.size}")

    def slot(self, batch: Batch, count: int) -> Slot:
        """See :class:`peers.slots.System`."""
        ring, dtype = self._ring, _dtype(batch.dtype)
        make = ring.empty if batch.mode.endswith("-empty") else np.empty
        array = make(count, dtype)
        if batch.kind == "ping_pong":
            result = np.empty(count, dtype)
            other = 1 - ring.rank
            send = functools.partial(ring.send, array, other, timeout=PATIENCE)
            receive = functools.partial(ring.recv, result, other, timeout=PATIENCE)
            return ping_pong(ring.rank, array, result, send, receive)
        begin = getattr(ring, f"{batch.kind}_async")
        how: dict[str, Any] = {"timeout": PATIENCE}
        if (wire := MODES[batch.mode].wire) is not None:
            how["wire"] = wire
        return Slot(
            array,
            functools.partial(getattr(ring, batch.kind), array, **how),
            lambda: begin(array, **how).wait,
            lambda inputs: functools.partial(ring.all_reduce_coalesced, inputs, **how),
        )

    def close(self) -> None:
        """See :class:`peers.slots.System`."""
        self._ring.close()


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # noqa: PLC0415  optional, as numpy does without it

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
