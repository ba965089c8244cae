"""No exchange at all: what remains of a benchmark beside the calls."""

from __future__ import annotations

import numpy as np
from instrument.batch import Batch

from peers.slots import Slot


class Nothing:
    """One program; its results are what it handed over."""

    def __init__(self, rank: int, size: int, argument: None) -> None:
        """Nothing is to be set up."""

    def slot(self, batch: Batch, count: int) -> Slot:  # noqa: ARG002 - it has one mode
        """See :class:`peers.slots.System`."""
        array = np.empty(count, np.float32)
        return Slot(array, lambda: array)

    def close(self) -> None:
        """See :class:`peers.slots.System`."""
