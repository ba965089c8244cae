"""The one NaN of all results, whatever NaNs went in and wherever a new one arose."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NAN_BITS: dict[np.dtype[Any], tuple[np.dtype[Any], int]] = {
    np.dtype(np.float32): (np.dtype(np.uint32), 0x7FC0_0000),
    np.dtype(np.float64): (np.dtype(np.uint64), 0x7FF8_0000_0000_0000),
}
"""Quiet, positive, no payload; narrower dtypes take its first bits."""


def spread_nans(values: npt.NDArray[Any]) -> None:
    """Make both parts of a complex number NaN where one of them is."""
    lacking = np.isnan(values)
    if lacking.any():
        values[lacking] = complex(np.nan, np.nan)


def unify_nans(values: npt.NDArray[Any]) -> None:
    """Make every NaN of *values* (float32 or float64) the same one."""
    if not len(values):
        return
    largest = np.maximum.reduce(values)  # a sixth of the time of a sum; carries NaN
    if largest != largest:  # noqa: PLR0124  only a NaN
        unsigned, nan = NAN_BITS[values.dtype]
        np.copyto(values.view(unsigned), unsigned.type(nan), where=np.isnan(values))
