"""Memory that numpy's loops go through at their full speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LINE = 64
"""Bytes of a cache line, and of the widest vectors. Where each second vector lies across two lines,
as in what numpy allocates, a loop over the cache takes up to twice the time."""


def aligned(nbytes: int) -> npt.NDArray[Any]:
    """Return *nbytes* bytes with any content, as uint8, that begin with a cache line."""
    memory = np.empty(nbytes + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + nbytes]
